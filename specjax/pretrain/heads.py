"""The last stage of pretraining: the label heads and the model's domain, on features of varied spectra.

Both towers are frozen by now, so a pool of varied spectra is embedded once and the heads train on that.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from specjax.config import ModelConfig
from specjax.foundation.ood import Domain
from specjax.models.label_head import LabelHead
from specjax.models.specclip import SpecCLIP
from specjax.models.tokens import tokenise
from specjax.pretrain.augment import augment
from specjax.pretrain.batches import Scored, draw, rows_apart
from specjax.pretrain.recipe import PretrainConfig
from specjax.train.losses import label_loss
from specjax.typing import Tree

AT_ONCE = 256  # spectra that the towers embed at a time


class HeadTraining:
    """Trains MLP1 on the mean token and MLP2 on the projected vector."""

    def __init__(
        self,
        config: PretrainConfig,
        model_config: ModelConfig,
        data: Tree,
        scored: Scored,
        scaler: Tree,
        *,
        run_stage: Callable[..., tuple[Tree, Tree]],
        say: Callable[[str], None],
    ) -> None:
        """Make the modules; data, scored and scaler are those of `batches.make_data`.

        `run_stage` is that of `stage`, bound to where states and reports go.
        """
        self.config, self.model_config, self.data = config, model_config, data
        self.scored, self.scaler = scored, scaler
        self.run_stage, self.say = run_stage, say
        self.model, self.head = SpecCLIP(model_config), LabelHead(model_config.head)

    def run(self, variables: Tree, outside: Mapping[str, Any], key: jax.Array) -> tuple[Tree, Tree, Domain]:
        """Train both heads on the towers of `variables`.

        Returns ({"params", "batch_stats"} with the heads, their stats, the domain, see `fit_domain`).
        """
        params, batch_stats = dict(variables["params"]), dict(variables["batch_stats"])
        pools, labels = self.feature_pool(variables, key)
        domain = self.fit_domain(variables, pools["mlp1"], outside, key)
        stats: Tree = {}
        observed = self._observed(variables)
        for name, pool in pools.items():
            scaler = {"feature_mean": pool.mean(axis=0), "feature_std": pool.std(axis=0) + 1e-6}
            stats[name] = {**scaler, **self.scaler}
            standard = (pool - scaler["feature_mean"]) / scaler["feature_std"]
            clean = (observed[name] - scaler["feature_mean"]) / scaler["feature_std"]
            head = self.head.init(key, pool[:2])
            data = {"pool": standard, "labels": labels}
            params[name], batch_stats[name] = self._train(name, head, data, clean, key)
        return {"params": params, "batch_stats": batch_stats}, jax.tree.map(np.asarray, stats), domain

    def feature_pool(self, variables: Tree, key: jax.Array) -> tuple[dict[str, jax.Array], jax.Array]:
        """Draw `head_pool` varied spectra and embed them: {head: (pool, d)} and labels (pool, k)."""
        config = self.config
        make = jax.jit(lambda key, data: draw(key, data, AT_ONCE, config.head_augment))
        features: dict[str, list[jax.Array]] = {"mlp1": [], "mlp2": []}
        labels = []
        for index in range(config.head_pool // AT_ONCE):
            batch = make(jax.random.fold_in(key, index), self.data)
            for name, values in self.features(variables, batch["flux"], batch["valid"]).items():
                features[name].append(values)
            labels.append(batch["labels"])
        self.say(f"heads: features of {AT_ONCE * len(labels)} varied spectra")
        return {name: jnp.concatenate(values) for name, values in features.items()}, jnp.concatenate(labels)

    def fit_domain(
        self, variables: Tree, inside: jax.Array, outside: Mapping[str, Any], key: jax.Array
    ) -> Domain:
        """Fit the domain to features (n, d) of varied spectra inside, and of those outside, varied too.

        `outside` has spectra (m, k, p) of kinds of stars beyond the corpus, each as observed and rendered.
        """
        found = {}
        for name, spectra in outside.items():
            # As many as observed as of all renditions together, each varied anew.
            renditions = spectra.shape[1] - 1
            column = np.r_[np.zeros(max(renditions, 1), int), 1 : renditions + 1]
            flux = jnp.asarray(spectra[:, column].reshape(-1, spectra.shape[2]))
            column = jnp.asarray(np.tile(column, len(spectra)))
            parts = []
            for start in range(0, len(flux), AT_ONCE):
                rows = slice(start, start + AT_ONCE)
                varied = self._varied(jax.random.fold_in(key, start), flux[rows], column[rows])
                parts.append(self.features(variables, *varied))
            found[name] = np.concatenate([np.asarray(part["mlp1"]) for part in parts])
        return Domain.fit(inside, found)

    @functools.cached_property
    def features(self) -> Callable[..., dict[str, jax.Array]]:
        """The compiled towers: (variables, flux (n, p), valid (n, p) or None) -> {head: (n, d)}."""

        @jax.jit
        def features(variables: Tree, flux: jax.Array, valid: jax.Array | None) -> dict[str, jax.Array]:
            def run(model: SpecCLIP, tokens: jax.Array) -> dict[str, jax.Array]:
                embedded = model.lamost.backbone(tokens)
                return {"mlp1": embedded.mean(axis=1), "mlp2": model.lamost.projection(embedded)}

            tokens = tokenise(flux, self.model_config.specformer, valid)
            return self.model.apply({"params": variables["params"]}, tokens, method=run)

        return features

    @functools.cached_property
    def _varied(self) -> Callable[..., tuple[jax.Array, jax.Array]]:
        width = self.data["noise_width"]
        return jax.jit(
            lambda key, flux, column: augment(key, flux, self.config.head_augment, column > 0, width[column])
        )

    def _observed(self, variables: Tree) -> dict[str, jax.Array]:
        """Embed the stars that score the heads, as they are: {head: (n, d)}."""
        flux = self.scored.flux
        starts = range(0, len(flux), AT_ONCE)
        parts = [self.features(variables, flux[start : start + AT_ONCE], None) for start in starts]
        return jax.tree.map(lambda *each: jnp.concatenate(each), *parts)

    def _train(
        self, name: str, head: Tree, data: Tree, clean: jax.Array, key: jax.Array
    ) -> tuple[Tree, Tree]:
        size = self.config.heads.batch

        def loss(params: Tree, stats: Tree, data: Tree, key: jax.Array) -> Any:
            choose, drop = jax.random.split(key)
            rows = jax.random.randint(choose, (size,), 0, len(data["pool"]))
            batch = rows_apart(jax.tree.map(lambda leaf: leaf[rows], data))
            predicted, updates = self.head.apply(
                {"params": params, "batch_stats": stats},
                batch["pool"],
                use_running_average=False,
                deterministic=False,
                per_member=True,
                rngs={"dropout": drop},
                mutable=["batch_stats"],
            )
            targets = jnp.broadcast_to(batch["labels"], predicted.shape)
            return label_loss(predicted, targets), (updates["batch_stats"], {})

        def validate(params: Tree, stats: Tree) -> dict[str, float]:
            predicted = self.head.apply({"params": params, "batch_stats": stats}, clean)
            return self.scored.scores(predicted, self.scaler, self.model_config.labels.index("fe_h"))

        return self.run_stage(
            name,
            loss,
            self.config.heads,
            params=head["params"],
            batch_stats=head["batch_stats"],
            data=data,
            key=key,
            validate=validate,
        )
