"""The timed work of specjax: embedding, training steps, whole runs, and all configurations."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from specjax import lora
from specjax.adapt import objectives
from specjax.adapt.adaptation import Adaptation
from specjax.adapt.configuration import PAPER, Configuration
from specjax.adapt.settings import AdaptConfig
from specjax.adapt.splits import draw_splits
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
from specjax.typing import Float32Array, FloatArray, Tree

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


@dataclasses.dataclass(frozen=True, eq=False)
class MaskedModelling:
    """LoRA1 steps, or with `full` steps of the whole encoder, on one batch of tokens."""

    model: Foundation
    tokens: jax.Array
    full: bool = False

    def loss(self, trained: Tree, frozen: Tree, tokens: jax.Array, own: Tree, key: jax.Array) -> jax.Array:
        """Return the masked-modelling loss of the whole encoder."""
        del own
        config = self.model.config
        hidden = losses.chunk_mask(key, len(tokens), config.specformer)
        predicted = apply(
            SpecCLIP(config, dtype=module_dtype(self.model.dtype)),
            {"params": lora.combine(frozen, trained)},
            jnp.where(hidden[..., None], 0, tokens),
            method=lambda model, x: model.lamost.backbone.predict_tokens(x),
        )
        return losses.masked_modelling(predicted, tokens, hidden)

    def call(self, seeds: int) -> Call:
        """Make the call that trains one step of all seeds."""
        tower = {"lamost": {"backbone": self.model.params["lamost"]["backbone"]}}
        if self.full:
            # A leading axis for the single seed, as all trainable parameters have.
            return _fit_call(self.loss, None, {}, jax.tree.map(lambda x: x[None], tower), self.tokens, {}, 1)
        config, batch, dtype = self.model.config, len(self.tokens), self.model.dtype
        problem = objectives.Problem(
            config=config,
            dtype=dtype,
            entry=Entry("tokens"),
            heads=(),
            column=0,
            objective=objectives.Objective(label=0.0, masked=1.0),
            batch=batch,
            rows=micro_batch_size(config, batch, seeds, np.dtype(dtype).itemsize),
        )
        loss, group = objectives.make_loss(problem), {"lora1": config.lora1}
        shared = {"pool": self.tokens, "in_pool": jnp.ones(batch, bool)}
        frozen, start = {"params": tower}, _factors(tower, group, seeds)
        return _fit_call(loss, group, frozen, start, shared, {}, seeds)


@dataclasses.dataclass(frozen=True, eq=False)
class Joint:
    """Steps of LoRA1 and LoRA2 together on a batch of tokens (n, t, token_dim) with labels (n,)."""

    model: Foundation
    tokens: jax.Array
    labels: Float32Array

    def call(self, seeds: int) -> Call:
        """Make the call that trains one step of all seeds."""
        config, batch, dtype = self.model.config, len(self.tokens), self.model.dtype
        params = {
            "lamost": {"backbone": self.model.params["lamost"]["backbone"]},
            "mlp1": self.model.params["mlp1"],
        }
        problem = objectives.Problem(
            config=config,
            dtype=dtype,
            entry=Entry("tokens"),  # the embedding too, as PyTorch computes it
            heads=("mlp1",),
            column=0,
            objective=objectives.Objective(),
            batch=batch,
            rows=micro_batch_size(config, batch, seeds, np.dtype(dtype).itemsize),
        )
        dim = config.specformer.dim
        frozen = {
            "params": params,
            "batch_stats": {"mlp1": self.model.variables["batch_stats"]["mlp1"]},
            "stats": {"mlp1": {"feature_mean": jnp.zeros(dim), "feature_std": jnp.ones(dim)}},
        }
        group = {name: config.loras[name] for name in ("lora1", "lora2")}
        own = {
            "rows": jnp.tile(jnp.arange(batch), (seeds, 1)),
            "y": {"mlp1": jnp.tile(self.labels, (seeds, 1))},
            "weight": jnp.ones((seeds, batch)),
        }
        shared = {"labelled": {"tokens": self.tokens}}
        start = _factors(params, group, seeds)
        return _fit_call(objectives.make_loss(problem), group, frozen, start, shared, own, seeds)


@dataclasses.dataclass(frozen=True, eq=False)
class Contrastive:
    """LoRA3 steps on one batch of cached tokens (n, t, d) against z_xp (n, d)."""

    model: Foundation
    tokens: jax.Array
    z_xp: jax.Array

    def loss(self, trained: Tree, frozen: Tree, shared: Tree, own: Tree, key: jax.Array) -> jax.Array:
        """Return the contrastive loss."""
        del own, key
        config = self.model.config
        z = apply(
            SpecCLIP(config, lora3=config.lora3, dtype=module_dtype(self.model.dtype)),
            {"params": lora.combine(frozen, trained)},
            shared["tokens"],
            method=lambda model, x: model.lamost.projection(x),
        )
        return losses.contrastive(shared["z_xp"], z)

    def call(self, seeds: int) -> Call:
        """Make the call that trains one step of all seeds."""
        tower = {"lamost": {"projection": self.model.params["lamost"]["projection"]}}
        group = {"lora3": self.model.config.lora3}
        shared = {"tokens": self.tokens, "z_xp": self.z_xp}
        return _fit_call(self.loss, group, tower, _factors(tower, group, seeds), shared, {}, seeds)


@dataclasses.dataclass(frozen=True, eq=False)
class HeadRun:
    """Whole LoRA4 runs on cached features (n, d) and labels (n,), the same for each seed."""

    model: Foundation
    features: Float32Array
    labels: Float32Array
    steps: int

    def loss(self, trained: Tree, frozen: Tree, stats: Tree, own: Tree, key: jax.Array) -> jax.Array:
        """Return the robust loss of all training stars."""
        del key
        head = LabelHead(self.model.config.head, lora=self.model.config.lora4)
        params = lora.combine(frozen, trained)["mlp2"]
        predicted = apply(head, {"params": params, "batch_stats": stats}, own["x"])[:, 0]
        return losses.label_loss(predicted, own["y"])

    def call(self, seeds: int) -> Call:
        """Make the call that trains all seeds to the end."""
        frozen = {"mlp2": self.model.params["mlp2"]}
        group = {"lora4": self.model.config.lora4}
        own = {
            "x": jnp.asarray(np.broadcast_to(self.features, (seeds, *self.features.shape))),
            "y": jnp.asarray(np.broadcast_to(self.labels, (seeds, *self.labels.shape))),
        }
        stats = self.model.variables["batch_stats"]["mlp2"]
        start = _factors(frozen, group, seeds)
        return _fit_call(self.loss, group, frozen, start, stats, own, seeds, self.steps)


def whole_table(model: Foundation, seeds: int) -> Call:
    """Make the call that runs the six configurations for all seeds, from spectra to predictions."""
    target, config = random_target(model.config), AdaptConfig(seeds=seeds)
    splits = draw_splits(len(target.labelled), seeds=seeds, train=config.train, validate=config.validate)

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


def _factors(tree: Tree, group: dict[str, LoRAConfig], seeds: int) -> Tree:
    keys = jax.random.split(jax.random.key(0), seeds)
    return jax.vmap(lambda key: lora.init_adapters(key, tree, group))(keys)


def _fit_call(
    loss: Loss,
    group: dict[str, LoRAConfig] | None,
    frozen: Tree,
    start: Tree,
    shared: Tree,
    own: Tree,
    seeds: int,
    steps: int = 1,
) -> Call:
    """Make the call that trains factors of `group`, or everything with AdamW if there is none."""
    schedules = dict.fromkeys(group or (), SCHEDULE)
    optimizer = make_optimizer(schedules, steps=steps) if group else optax.adamw(1e-3)
    keys = jax.random.split(jax.random.key(1), seeds)
    return lambda: fit(
        loss, optimizer, frozen=frozen, trainable=start, shared=shared, per_seed=own, keys=keys, steps=steps
    )
