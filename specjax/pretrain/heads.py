"""The last stage of pretraining: label heads and out-of-domain flags on features of augmented spectra.

Both towers are frozen by then: a pool of augmented spectra is embedded once, and the heads train on its
features.
"""

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from specjax.config import ModelConfig
from specjax.foundation.ood import OutOfDomain
from specjax.models.apply import apply
from specjax.models.label_head import LabelHead
from specjax.models.products import token_mean
from specjax.models.specclip import SpecCLIP
from specjax.models.tokens import tokenise
from specjax.pretrain.augment import augment
from specjax.pretrain.batches import Material
from specjax.pretrain.config import PretrainConfig
from specjax.pretrain.programs import StageAux, StageLoss
from specjax.progress import Say
from specjax.train.losses import label_loss
from specjax.train.sharding import shard_rows
from specjax.typing import AnyArray, FloatArray, Tree

AT_ONCE = 256  # spectra to embed at a time


class Trained(NamedTuple):
    """The result of pretraining: {"params", "batch_stats"}, the scalers of each head, out-of-domain flags.

    Without heads there are neither scalers nor flags.
    """

    variables: Tree
    stats: Tree
    ood: OutOfDomain | None


class HeadTraining:
    """Trains MLP1 on the mean token and MLP2 on the projected vector."""

    def __init__(
        self,
        config: PretrainConfig,
        model_config: ModelConfig,
        material: Material,
        *,
        run_stage: Callable[..., tuple[Tree, Tree]],
        say: Say,
    ) -> None:
        """Make the modules.

        Args:
            config: schedules and augmentation.
            model_config: sizes of the model.
            material: what they train on.
            run_stage: `loop.run_stage` with the folder of its states and `say` bound.
            say: takes lines of progress.
        """
        self.config, self.model_config = config, model_config
        self.data, self.validation, self.scaler, self.draw, self.source = material
        self.run_stage, self.say = run_stage, say
        self.model, self.head = SpecCLIP(model_config), LabelHead(model_config.head)

    def run(self, variables: Tree, out_of_range: Mapping[str, AnyArray], key: jax.Array) -> Trained:
        """Train both heads on the features of the towers in `variables`; see `fit_ood` for `out_of_range`."""
        params, batch_stats = dict(variables["params"]), dict(variables.get("batch_stats", {}))
        pools, truth = self.feature_pool(variables, key)
        ood = self.fit_ood(variables, pools["mlp1"], out_of_range, key)
        stats: Tree = {}
        validation = self._validation_features(variables)
        for name, pool in pools.items():
            scaler = {"feature_mean": pool.mean(axis=0), "feature_std": pool.std(axis=0) + 1e-6}
            stats[name] = {**scaler, **self.scaler}
            standard = (pool - scaler["feature_mean"]) / scaler["feature_std"]
            scored = (
                (validation[name] - scaler["feature_mean"]) / scaler["feature_std"] if validation else None
            )
            head = self.head.init(key, pool[:2])
            data = {"pool": standard, **truth}
            params[name], batch_stats[name] = self._train(name, head, data, scored, key)
            scatter = self._scatter(params[name], batch_stats[name], scored)
            if scatter is not None and np.isfinite(scatter).all():
                stats[name]["label_scatter"] = scatter.astype(np.float32)
        variables = {"params": params, "batch_stats": batch_stats}
        return Trained(variables, jax.tree.map(np.asarray, stats), ood)

    def feature_pool(self, variables: Tree, key: jax.Array) -> tuple[dict[str, jax.Array], Tree]:
        """Draw and embed `head_pool` augmented spectra.

        Returns:
            {head: (pool, d)} and their "labels" (pool, k) and "weight" (pool,).
        """
        features: dict[str, list[jax.Array]] = {}
        truth = []
        for batch in self._pool_batches(key):
            for name, values in self.features(variables, batch["flux"], batch["valid"]).items():
                features.setdefault(name, []).append(values)
            truth.append({name: batch[name] for name in ("labels", "weight")})
        self.say(f"heads: features of {sum(len(part['weight']) for part in truth)} augmented spectra")
        joined = {name: jnp.concatenate(values) for name, values in features.items()}
        return joined, jax.tree.map(lambda *parts: jnp.concatenate(parts), *truth)

    def _pool_batches(self, key: jax.Array) -> Iterator[Tree]:
        """Draw the batches of the pool, or read them from files, where labels may be missing."""
        config = self.config
        make = jax.jit(
            lambda key, data, size: self.draw(key, data, size, config.head_augment), static_argnums=2
        )
        if self.source is None:
            for index in range(config.head_pool // AT_ONCE):
                yield make(jax.random.fold_in(key, index), self.data, AT_ONCE)
            return
        stars = self.source.count("lamost")
        size = min(AT_ONCE, stars)
        feed = self.source.feed(("lamost",), size, labels=True, shared=False)
        for index in range(max(min(config.head_pool, stars) // size, 1)):
            batch = next(feed)
            labels = (batch["labels"] - self.scaler["label_mean"]) / self.scaler["label_std"]
            known = np.isfinite(labels).all(axis=1)
            given = {name: batch[name] for name in ("flux", "valid")}
            given |= {"labels": np.where(known[:, None], labels, 0), "weight": known.astype(np.float32)}
            yield make(jax.random.fold_in(key, index), {"batch": given}, size)

    def fit_ood(
        self, variables: Tree, inside: jax.Array, out_of_range: Mapping[str, AnyArray], key: jax.Array
    ) -> OutOfDomain:
        """Fit the out-of-domain flags.

        Args:
            variables: of the towers.
            inside: (n, d) features of augmented spectra of the corpus, input of MLP1.
            out_of_range: spectra (m, 1 + k, p) by kind of star outside the corpus, as observed and at k lower
                resolutions.
            key: random key of their augmentation.
        """
        outside = {
            kind: self._augmented_features(variables, spectra, key) for kind, spectra in out_of_range.items()
        }
        return OutOfDomain.fit(inside, outside)

    def _augmented_features(self, variables: Tree, spectra: AnyArray, key: jax.Array) -> AnyArray:
        """Embed augmented spectra (m, 1 + k, p), each observed one as often as its k degraded copies."""
        copies = spectra.shape[1] - 1
        column = np.r_[np.zeros(max(copies, 1), int), 1 : copies + 1]
        flux = jnp.asarray(spectra[:, column].reshape(-1, spectra.shape[2]))
        column = jnp.asarray(np.tile(column, len(spectra)))
        parts = []
        for start in range(0, len(flux), AT_ONCE):
            rows = slice(start, start + AT_ONCE)
            augmented = self._augment(jax.random.fold_in(key, start), flux[rows], column[rows])
            parts.append(np.asarray(self.features(variables, *augmented)["mlp1"]))
        return np.concatenate(parts)

    @functools.cached_property
    def features(self) -> Callable[..., dict[str, jax.Array]]:
        """The compiled towers: (variables, flux (n, p), valid (n, p) or None) -> {head: (n, d)}."""

        @jax.jit
        def features(variables: Tree, flux: jax.Array, valid: jax.Array | None) -> dict[str, jax.Array]:
            def run(model: SpecCLIP, tokens: jax.Array) -> dict[str, jax.Array]:
                embedded = model.lamost.backbone(tokens)
                mean = {"mlp1": token_mean(embedded)}
                return mean | ({"mlp2": model.lamost.projection(embedded)} if projected else {})

            projected = "projection" in variables["params"]["lamost"]  # not in a bare encoder
            tokens = tokenise(flux, self.model_config.specformer, valid)
            embedded = self.model.apply({"params": variables["params"]}, tokens, method=run)
            return cast(dict[str, jax.Array], embedded)

        return cast(Callable[..., dict[str, jax.Array]], features)

    @functools.cached_property
    def _augment(self) -> Callable[..., tuple[jax.Array, jax.Array]]:
        """The compiled augmentation: (key, flux (n, p), column of the resolution (n,)) -> flux, valid."""
        width = self.data["noise_width"]
        return jax.jit(
            lambda key, flux, column: augment(key, flux, self.config.head_augment, column > 0, width[column])
        )

    def _validation_features(self, variables: Tree) -> dict[str, jax.Array]:
        """Embed the validation stars: {head: (m, d)}, {} if there are none."""
        if self.validation is None:
            return {}
        flux = self.validation.flux
        starts = range(0, len(flux), AT_ONCE)
        parts = [self.features(variables, flux[start : start + AT_ONCE], None) for start in starts]
        return {name: jnp.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _scatter(self, params: Tree, batch_stats: Tree, scored: jax.Array | None) -> FloatArray | None:
        """Return the scatter (k,) of a trained head on held-out stars, given their features."""
        if self.validation is None or scored is None:
            return None
        predicted = apply(self.head, {"params": params, "batch_stats": batch_stats}, scored)
        return self.validation.scatter(predicted, self.scaler)

    def _train(
        self, name: str, head: Tree, data: Tree, scored: jax.Array | None, key: jax.Array
    ) -> tuple[Tree, Tree]:
        labels = self.model_config.labels
        column = labels.index("fe_h") if "fe_h" in labels else 0
        title = {"fe_h": "[Fe/H]"}.get(labels[column], labels[column])

        def validate(params: Tree, stats: Tree) -> dict[str, float]:
            if self.validation is None or scored is None:
                return {}
            predicted = apply(self.head, {"params": params, "batch_stats": stats}, scored)
            return self.validation.scores(predicted, self.scaler, column, title)

        return self.run_stage(
            name,
            _head_loss(self.head, self.config.heads.batch),
            self.config.heads,
            params=head["params"],
            batch_stats=head["batch_stats"],
            data=data,
            key=key,
            validate=validate,
        )


def _head_loss(head: LabelHead, size: int) -> StageLoss:
    """Make the loss of a head on batches of `size` from the pool; each member has its own loss."""

    def loss(params: Tree, stats: Tree, data: Tree, key: jax.Array) -> tuple[jax.Array, StageAux]:
        choose, drop = jax.random.split(key)
        rows = jax.random.randint(choose, (size,), 0, len(data["pool"]))
        batch = shard_rows(jax.tree.map(lambda leaf: leaf[rows], data))
        predicted, updates = head.apply(
            {"params": params, "batch_stats": stats},
            batch["pool"],
            use_running_average=False,
            deterministic=False,
            per_member=True,
            rngs={"dropout": drop},
            mutable=["batch_stats"],
        )
        targets = jnp.broadcast_to(batch["labels"], predicted.shape)
        return label_loss(predicted, targets, batch["weight"]), (updates["batch_stats"], {})

    return loss
