"""The timed work of specjax: embedding, training steps, whole runs, and all configurations."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from numpy.typing import ArrayLike

from specjax import lora
from specjax.adapt import objectives
from specjax.adapt.adaptation import Adaptation
from specjax.adapt.configuration import PAPER, Configuration
from specjax.adapt.settings import AdaptConfig
from specjax.adapt.splits import default_sizes, draw_splits
from specjax.adapt.target import Target
from specjax.adapt.tower import Entry
from specjax.batching import micro_batch_size
from specjax.config import LoRAConfig, ModelConfig
from specjax.foundation import Foundation
from specjax.foundation.networks import module_dtype
from specjax.models import LabelHead, SpecCLIP, tokenise
from specjax.models.apply import apply
from specjax.spectra import Spectra
from specjax.train import losses
from specjax.train.loop import Loss, fit
from specjax.train.optimizer import GroupSchedule, make_optimizer
from specjax.typing import BoolArray, Float32Array, FloatArray, IntArray, Tree

Call = Callable[[], Any]

SCHEDULE = GroupSchedule(learning_rate=1e-3)


def random_model(config: ModelConfig, dtype: str = "float32") -> Foundation:
    """Make a model with both heads and random weights, on which the times do not depend."""
    pixels, samples = config.specformer.num_pixels, config.xp_autoencoder.num_pixels
    key = jax.random.key(0)
    system = dict(jax.eval_shape(SpecCLIP(config).init, key, np.ones((2, pixels)), np.ones((2, samples))))
    stats: dict[str, Any] = {}
    for head, dim in (("mlp1", config.specformer.dim), ("mlp2", config.projection.dim)):
        made = jax.eval_shape(LabelHead(config.head).init, key, np.ones((2, dim)))
        for name, tree in made.items():
            system[name] = {**system[name], head: tree}
        zeros = np.zeros(config.head.num_labels, np.float32)
        stats[head] = {"label_mean": zeros, "label_std": zeros + 1}
    return Foundation(config=config, variables=_drawn(system), stats=stats, dtype=dtype)


def _drawn(shapes: Tree) -> Tree:
    """Draw leaves with NumPy: compiling `init` at the paper's sizes takes longer than most of the table."""
    random = np.random.default_rng(0)

    def draw(path: Any, leaf: Any) -> Float32Array:
        name = path[-1].key
        if name in ("scale", "var"):
            return np.ones(leaf.shape, np.float32)
        spread = leaf.shape[-2] ** -0.5 if len(leaf.shape) > 1 else 0.01
        return np.asarray(spread * random.standard_normal(leaf.shape, np.float32), np.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def random_spectra(pixels: int, count: int) -> Float32Array:
    """Draw flux (count, pixels) around 1."""
    return np.random.default_rng(0).normal(1.0, 0.1, (count, pixels)).astype(np.float32)


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Training:
    """What `train.loop.fit` needs to train any number of seeds.

    Attributes:
        loss: the objective.
        groups: LoRA groups that are trained; without any, all parameters are, with AdamW.
        frozen: parameters that are not trained.
        adapted: the tree beside which the factors are, or all that is trained, if there are no groups.
        shared: data that all seeds read.
        own: data of one seed, the same for each.
        steps: optimizer steps.
    """

    loss: Loss
    groups: Mapping[str, LoRAConfig]
    frozen: Tree
    adapted: Tree
    shared: Tree
    own: Tree = dataclasses.field(default_factory=dict)
    steps: int = 1

    def start(self, seeds: int) -> Tree:
        """Return initial values, leaves (S, ...), for seed k the same whatever the number of seeds."""
        if not self.groups:
            return _repeated(self.adapted, seeds)
        keys = _keys(0, seeds)
        return jax.vmap(lambda key: lora.init_adapters(key, self.adapted, dict(self.groups)))(keys)

    def call(self, seeds: int) -> Call:
        """Make the call that trains all seeds to the end."""
        schedules = dict.fromkeys(self.groups, SCHEDULE)
        optimizer = make_optimizer(schedules, steps=self.steps) if self.groups else optax.adamw(1e-3)
        start, own, keys = self.start(seeds), _repeated(self.own, seeds), _keys(1, seeds)
        return lambda: fit(
            self.loss,
            optimizer,
            frozen=self.frozen,
            trainable=start,
            shared=self.shared,
            per_seed=own,
            keys=keys,
            steps=self.steps,
        )

    def loss_and_gradients(self, trained: Tree, key: jax.Array) -> tuple[jax.Array, Tree]:
        """Return losses (S,) and gradients (S, ...) of trained leaves (S, ...), with one key for all."""

        def one_seed(trained: Tree) -> tuple[jax.Array, Tree]:
            return jax.value_and_grad(self.loss)(trained, self.frozen, self.shared, self.own, key)

        result: tuple[jax.Array, Tree] = jax.jit(jax.vmap(one_seed))(trained)
        return result


def masked_modelling(model: Foundation, tokens: jax.Array, seeds: int = 1) -> Training:
    """Train LoRA1 for a step on a batch drawn from tokens (n, t, token_dim), as large as they are.

    The number of seeds decides how many spectra go through the tower at a time.
    """
    config, tower = model.config, _tower(model)
    return Training(
        loss=objectives.make_loss(
            _problem(model, len(tokens), seeds, (), objectives.Objective(label=0.0, masked=1.0))
        ),
        groups={"lora1": config.lora1},
        frozen={"params": tower},
        adapted=tower,
        shared={"pool": tokens, "in_pool": jnp.ones(len(tokens), bool)},
    )


def drawn_and_hidden(config: ModelConfig, key: jax.Array, batch: int) -> tuple[IntArray, BoolArray]:
    """Return the rows (n,) and hidden tokens (n, t) that the loss of `masked_modelling` draws with a key."""
    choose, mask = jax.random.split(jax.random.split(key, 3)[1])
    rows = jax.random.categorical(choose, jnp.zeros(batch), shape=(batch,))
    return np.asarray(rows), np.asarray(losses.chunk_mask(mask, batch, config.specformer))


def full_step(model: Foundation, tokens: jax.Array) -> Training:
    """Train the whole encoder for a step of masked modelling on a batch of tokens (n, t, token_dim)."""
    config = model.config

    def loss(trained: Tree, frozen: Tree, tokens: jax.Array, own: Tree, key: jax.Array) -> jax.Array:
        del frozen, own
        hidden = losses.chunk_mask(key, len(tokens), config.specformer)
        predicted = apply(
            SpecCLIP(config, dtype=module_dtype(model.dtype)),
            {"params": trained},
            jnp.where(hidden[..., None], 0, tokens),
            method=lambda model, x: model.lamost.backbone.predict_tokens(x),
        )
        return losses.masked_modelling(predicted, tokens, hidden)

    return Training(loss=loss, groups={}, frozen={}, adapted=_tower(model), shared=tokens)


def joint(model: Foundation, tokens: jax.Array, labels: Float32Array, seeds: int = 1) -> Training:
    """Train LoRA1 and LoRA2 together for a step on tokens (n, t, token_dim) with labels (n,).

    `seeds` is as in `masked_modelling`.
    """
    config, batch, dim = model.config, len(tokens), model.config.specformer.dim
    params = {**_tower(model), "mlp1": model.params["mlp1"]}
    return Training(
        loss=objectives.make_loss(_problem(model, batch, seeds, ("mlp1",), objectives.Objective())),
        groups={name: config.loras[name] for name in ("lora1", "lora2")},
        frozen={
            "params": params,
            "batch_stats": {"mlp1": model.variables["batch_stats"]["mlp1"]},
            "stats": {"mlp1": {"feature_mean": jnp.zeros(dim), "feature_std": jnp.ones(dim)}},
            "column": jnp.int32(0),
        },
        adapted=params,
        shared={"labelled": {"tokens": tokens}},
        own={"rows": jnp.arange(batch), "y": {"mlp1": jnp.asarray(labels)}, "weight": jnp.ones(batch)},
    )


def contrastive(model: Foundation, tokens: ArrayLike, z_xp: ArrayLike) -> Training:
    """Train LoRA3 for a step on cached tokens (n, t, d) against z_xp (n, k)."""
    config, tower = model.config, {"lamost": {"projection": model.params["lamost"]["projection"]}}

    def loss(trained: Tree, frozen: Tree, shared: Tree, own: Tree, key: jax.Array) -> jax.Array:
        del own, key
        z = apply(
            SpecCLIP(config, lora3=config.lora3, dtype=module_dtype(model.dtype)),
            {"params": lora.combine(frozen, trained)},
            shared["tokens"],
            method=lambda model, x: model.lamost.projection(x),
        )
        return losses.contrastive(shared["z_xp"], z)

    shared = {"tokens": jnp.asarray(tokens), "z_xp": jnp.asarray(z_xp)}
    return Training(loss=loss, groups={"lora3": config.lora3}, frozen=tower, adapted=tower, shared=shared)


def head_run(model: Foundation, features: Float32Array, labels: Float32Array, steps: int) -> Training:
    """Train LoRA4 on cached features (n, d) and labels (n,), all stars in every step."""
    config, head = model.config, {"mlp2": model.params["mlp2"]}

    def loss(trained: Tree, frozen: Tree, stats: Tree, own: Tree, key: jax.Array) -> jax.Array:
        del key
        module = LabelHead(config.head, lora=config.lora4)
        variables = {"params": lora.combine(frozen, trained)["mlp2"], "batch_stats": stats}
        return losses.label_loss(apply(module, variables, own["x"])[:, 0], own["y"])

    return Training(
        loss=loss,
        groups={"lora4": config.lora4},
        frozen=head,
        adapted=head,
        shared=model.variables["batch_stats"]["mlp2"],
        own={"x": jnp.asarray(features), "y": jnp.asarray(labels)},
        steps=steps,
    )


def _tower(model: Foundation) -> Tree:
    return {"lamost": {"backbone": model.params["lamost"]["backbone"]}}


def _problem(
    model: Foundation, batch: int, seeds: int, heads: tuple[str, ...], objective: objectives.Objective
) -> objectives.Problem:
    return objectives.Problem(
        config=model.config,
        dtype=model.dtype,
        entry=Entry("tokens"),  # the embedding too, as PyTorch computes it
        heads=heads,
        objective=objective,
        batch=batch,
        rows=micro_batch_size(model.config, batch, seeds, np.dtype(model.dtype).itemsize),
    )


def whole_table(model: Foundation, seeds: int) -> Call:
    """Make the call that runs the six configurations for all seeds, from spectra to predictions."""
    target, config = random_target(model.config), AdaptConfig(seeds=seeds)
    train, validate = default_sizes(len(target.labelled))
    splits = draw_splits(len(target.labelled), seeds=seeds, train=train, validate=validate)

    def call() -> Any:
        adaptation = Adaptation(model, target, splits, config)
        return [adaptation.run(Configuration.parse(name)).predictions for name in PAPER]

    return call


def random_target(config: ModelConfig, labelled: int = 126, unlabelled: int = 128) -> Target:
    """Make a target of the size of the demo's."""
    random = np.random.default_rng(1)
    count = labelled + unlabelled
    lamost = _on_grid("lamost", random.normal(1.0, 0.1, (count, config.specformer.num_pixels)))
    xp = _on_grid("gaia_xp", random.normal(1.0, 0.1, (count, config.xp_autoencoder.num_pixels)))
    truth, rows = random.normal(-0.5, 0.5, labelled), np.arange(count)
    return Target(
        name="random",
        labelled=lamost[rows[:labelled]],
        truth=truth,
        label=config.labels[-1],
        unlabelled=lamost[rows[labelled:]],
        unlabelled_xp=xp[rows[labelled:]],
        fe_h=truth,
    )


def _on_grid(survey: str, flux: FloatArray) -> Spectra:
    """Make spectra on a model grid without uncertainties; the wavelengths are arbitrary."""
    return Spectra(
        wavelength=np.arange(4000.0, 4000.0 + flux.shape[1]),
        flux=flux,
        ivar=np.ones(flux.shape),
        mask=np.zeros(flux.shape, bool),
        id=np.array([f"star{k}" for k in range(len(flux))]),
        survey=survey,
        has_ivar=False,
        prepared={"tower": survey},
    )


def random_tokens(model: Foundation, count: int) -> jax.Array:
    """Make tokens (count, t, token_dim) of random spectra."""
    tower = model.config.specformer
    tokens: jax.Array = jax.jit(tokenise, static_argnums=1)(random_spectra(tower.num_pixels, count), tower)
    return tokens


def _keys(number: int, seeds: int) -> jax.Array:
    fold = functools.partial(jax.random.fold_in, jax.random.key(number))
    keys: jax.Array = jax.vmap(fold)(jnp.arange(seeds))
    return keys


def _repeated(tree: Tree, seeds: int) -> Tree:
    return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (seeds, *jnp.shape(leaf))), tree)
