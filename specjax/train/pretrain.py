"""The mini foundation from nothing: the stages of the published model on a corpus of real stars.

1. backbone: masked modelling of LAMOST-grid tokens, with the three labels as a second task on the mean token
   (688 stars are too few to learn from masks alone which lines matter; the published model saw millions);
2. autoencoder: the Gaia XP encoder;
3. alignment: contrastive, cross prediction and reconstruction (weights 1:1:1) with the backbones frozen, and
   the labels again as a second task on the projected vector;
4. heads: MLP1 on the mean token and MLP2 on the projected vector, both towers frozen.

Every batch is drawn and varied anew (`augment`): what is learnt must hold for more than one instrument.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from specjax.config import ModelConfig, get_preset
from specjax.domain import Domain
from specjax.metrics import r2, robust_sigma
from specjax.models.label_head import LabelHead
from specjax.models.layers import standardise, tokenise
from specjax.models.specclip import SpecCLIP
from specjax.models.xp_autoencoder import xp_vector
from specjax.train import losses
from specjax.train.augment import AugmentConfig, augment, mix
from specjax.train.stage import StageConfig, run_stage

Tree = Any
Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """Schedules and variations of a pretraining run; chosen on held-out MILES stars (see docs/mini.md)."""

    preset: str = "mini"
    seed: int = 0
    held_out: float = 0.1  # share of the stars kept for validation
    neighbours: int = 6
    masked_weight: float = 0.1
    label_weight: float = 1.0
    xp_noise: float = 0.01
    head_pool: int = 20480
    rendition_probability: float = 0.5  # of a star at a lower resolution, in the stages of the towers
    head_rendition_probability: float = 0.3  # and in that of the heads
    augment: AugmentConfig = AugmentConfig(noise=(0.003, 0.05))
    head_augment: AugmentConfig = AugmentConfig()
    backbone: StageConfig = StageConfig(steps=2400, batch=64, learning_rate=2e-3)
    autoencoder: StageConfig = StageConfig(steps=2000, batch=128, learning_rate=1e-3)
    alignment: StageConfig = StageConfig(steps=800, batch=128, learning_rate=2e-3)
    heads: StageConfig = StageConfig(steps=2000, batch=512, learning_rate=2e-3, chunk=500)


class LabelProbe(nn.Module):
    """A small regression network for the second tasks; it is thrown away after its stage."""

    num_labels: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map features x (n, d) to standardised labels (n, num_labels)."""
        x = nn.LayerNorm()(x)
        for width in (128, 64):
            x = nn.gelu(nn.Dense(width)(x))
        return nn.Dense(self.num_labels)(x)


def make_data(corpus: Any, config: PretrainConfig) -> tuple[Tree, Tree]:
    """Turn `corpus.Pairs` into the arrays that all stages read.

    Returns (data, scaler): data has flux, xp_flux, xp_valid, labels (standardised), neighbours (n, k) in
    label space, allowed (n,), False for held-out stars, and renditions (n, k, p) where the corpus has them;
    scaler has label_mean and label_std.
    """
    scaler = {
        "label_mean": corpus.labels.mean(axis=0).astype(np.float32),
        "label_std": corpus.labels.std(axis=0).astype(np.float32),
    }
    labels = ((corpus.labels - scaler["label_mean"]) / scaler["label_std"]).astype(np.float32)
    distance = ((labels[:, None] - labels[None]) ** 2).sum(-1)
    neighbours = np.argsort(distance, axis=1)[:, 1 : config.neighbours + 1]
    order = np.random.default_rng(config.seed).permutation(len(labels))
    allowed = np.ones(len(labels), bool)
    allowed[order[: round(config.held_out * len(labels))]] = False
    data = {
        "flux": corpus.flux,
        "xp_flux": corpus.xp_flux,
        "xp_valid": corpus.xp_valid,
        "labels": labels,
        "neighbours": neighbours,
        "allowed": allowed,
    }
    if corpus.renditions is not None:
        data["renditions"] = corpus.renditions
    return jax.tree.map(jnp.asarray, data), scaler


def draw(
    key: jax.Array, data: Tree, batch: int, variations: AugmentConfig, rendition_probability: float = 0.0
) -> Tree:
    """Draw a batch of mixed and varied stars: flux, valid, xp_flux, xp_valid, labels.

    With rendition_probability a star is taken at one of the lower resolutions of data["renditions"].
    """
    choose, pair, vary, lower, which, blue = jax.random.split(key, 6)
    logits = jnp.where(data["allowed"], 0.0, -jnp.inf)
    index = jax.random.categorical(choose, logits, shape=(batch,))
    partner, share = mix(pair, index, data["neighbours"], data["allowed"], variations.mixing)

    def mixed(name: str) -> jax.Array:
        return data[name][index] * (1 - share) + data[name][partner] * share

    flux = mixed("flux")
    if rendition_probability and "renditions" in data:
        renditions = data["renditions"]
        number = jax.random.randint(which, (batch,), 0, renditions.shape[1])
        rendered = renditions[index, number] * (1 - share) + renditions[partner, number] * share
        flux = jnp.where(jax.random.bernoulli(lower, rendition_probability, (batch, 1)), rendered, flux)
    flux, valid = augment(vary, flux, variations)
    xp_valid = data["xp_valid"][index] & data["xp_valid"][partner]
    xp_flux, xp_valid = extend_blue(blue, mixed("xp_flux"), xp_valid)
    return {
        "flux": flux,
        "valid": valid,
        "xp_flux": xp_flux,
        "xp_valid": xp_valid,
        "labels": mixed("labels"),
    }


def extend_blue(key: jax.Array, flux: jax.Array, valid: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Continue half of the XP spectra (n, p) to the blue end by a straight line of random slope.

    No source star is observed below 354 nm, but real XP spectra and other surveys are: without this the
    weights of those samples would stay as drawn, and ruin the embedding of a spectrum that has them.
    """
    tilt, half = jax.random.split(key)
    first = jnp.argmax(valid, axis=1)[:, None]
    slope = jax.random.uniform(tilt, first.shape, minval=-0.8, maxval=0.3)
    beyond = jnp.maximum(first - jnp.arange(flux.shape[1]), 0) / jnp.maximum(first, 1)
    line = jnp.take_along_axis(flux, first, axis=1) * (1 + slope * beyond)
    extended = (beyond > 0) & jax.random.bernoulli(half, 0.5, first.shape)
    return jnp.where(extended, line, flux), valid | extended


def label_loss(predicted: jax.Array, labels: jax.Array) -> jax.Array:
    """Robust loss of standardised labels, all of which are known."""
    return losses.pseudo_huber(predicted - labels, jnp.ones_like(labels))


class Pretraining:
    """The stages on one corpus; each returns new variables, so they can be run and looked at one by one."""

    def __init__(
        self,
        corpus: Any,
        config: PretrainConfig,
        folder: Path | None = None,
        say: Say = print,
        outside: Mapping[str, Any] | None = None,
    ) -> None:
        """Set up data and modules.

        `folder` keeps training states for resuming; `outside` are spectra (m, k, p) of kinds of stars beyond
        the corpus, where the model's domain ends.
        """
        self.config, self.folder, self.say = config, folder, say
        self.model_config: ModelConfig = get_preset(config.preset)
        self.data, self.scaler = make_data(corpus, config)
        self.model = SpecCLIP(self.model_config)
        self.probe = LabelProbe(self.model_config.head.num_labels)
        self.head = LabelHead(self.model_config.head)
        self.key = jax.random.key(config.seed)
        self.outside = dict(outside or {})
        self.domain: Domain | None = None  # known once the heads have their features

    def run(self) -> tuple[Tree, Tree]:
        """Run all stages; returns ({"params", "batch_stats"}, stats of the heads)."""
        variables = self.initial()
        variables = self.train_backbone(variables)
        variables = self.train_autoencoder(variables)
        variables = self.align(variables)
        return self.train_heads(variables)

    def initial(self) -> Tree:
        """Initialise both towers and the decoders."""
        flux, xp = self.data["flux"][:2], self.data["xp_flux"][:2]
        return self.model.init(jax.random.fold_in(self.key, 0), flux, xp)

    def train_backbone(self, variables: Tree) -> Tree:
        """Stage 1: masked modelling and labels."""
        config, shape = self.config, self.model_config.specformer
        key = jax.random.fold_in(self.key, 1)
        probe = self.probe.init(key, jnp.zeros((1, shape.dim)))["params"]
        params = {"backbone": variables["params"]["lamost"]["backbone"], "probe": probe}

        def loss(params: Tree, stats: Tree, data: Tree, key: jax.Array) -> Any:
            draw_key, mask_key = jax.random.split(key)
            batch = draw(draw_key, data, config.backbone.batch, config.augment, config.rendition_probability)
            tokens = tokenise(batch["flux"], shape, batch["valid"])
            # Half of the batch is masked: the labels must come out of whole and of partly hidden spectra.
            half = jnp.arange(len(tokens))[:, None] < len(tokens) // 2
            hidden = losses.chunk_mask(mask_key, len(tokens), shape) & half
            embedded = self._backbone(params["backbone"], jnp.where(hidden[..., None], 0, tokens))
            head = params["backbone"]["head"]
            modelled = losses.masked_modelling(embedded @ head["kernel"] + head["bias"], tokens, hidden)
            predicted = self.probe.apply({"params": params["probe"]}, embedded.mean(axis=1))
            labelled = label_loss(predicted, batch["labels"])
            total = config.masked_weight * modelled + config.label_weight * labelled
            return total, (stats, {"masked": modelled, "labels": labelled})

        @jax.jit
        def probed(params: Tree, flux: jax.Array) -> jax.Array:
            embedded = self._backbone(params["backbone"], tokenise(flux, shape))
            return self.probe.apply({"params": params["probe"]}, embedded.mean(axis=1))

        params, _ = self._stage("backbone", loss, config.backbone, params, {}, key, probed)
        return self._replaced(variables, "lamost", params["backbone"])

    def train_autoencoder(self, variables: Tree) -> Tree:
        """Stage 2: the Gaia XP autoencoder, on all its inputs where they are valid."""
        config = self.config

        def loss(params: Tree, stats: Tree, data: Tree, key: jax.Array) -> Any:
            draw_key, noise_key = jax.random.split(key)
            batch = draw(draw_key, data, config.autoencoder.batch, config.head_augment)
            noise = config.xp_noise * jax.random.normal(noise_key, batch["xp_flux"].shape)
            target = xp_vector(batch["xp_flux"], batch["xp_valid"])
            given = xp_vector(batch["xp_flux"] + noise, batch["xp_valid"])
            rebuilt = self.model.apply(
                {"params": {"gaia_xp": {"backbone": params, "projection": {}}}},
                given,
                method=lambda model, x: model.gaia_xp.backbone.reconstruct(x),
            )
            counted = jnp.pad(batch["xp_valid"], ((0, 0), (2, 0)), constant_values=True)
            value = (((rebuilt - target) ** 2) * counted).sum() / counted.sum()
            return value, (stats, {})

        backbone = variables["params"]["gaia_xp"]["backbone"]
        key = jax.random.fold_in(self.key, 2)
        params, _ = self._stage("autoencoder", loss, config.autoencoder, backbone, {}, key, None)
        return self._replaced(variables, "gaia_xp", params)

    def align(self, variables: Tree) -> Tree:
        """Stage 3: projections and decoders, on the outputs of the frozen backbones."""
        config = self.config
        key = jax.random.fold_in(self.key, 3)
        probe = self.probe.init(key, jnp.zeros((1, self.model_config.projection.dim)))["params"]
        towers = {name: variables["params"][name]["backbone"] for name in ("lamost", "gaia_xp")}
        trained = {
            name: {k: v for k, v in tree.items() if k != "backbone"} if name in towers else tree
            for name, tree in variables["params"].items()
        }

        def joined(trained: Tree, towers: Tree) -> Tree:
            return {k: {**v, "backbone": towers[k]} if k in towers else v for k, v in trained.items()}

        def loss(params: Tree, stats: Tree, data: Tree, key: jax.Array) -> Any:
            draw_key, noise_key, drop_key = jax.random.split(key, 3)
            batch = draw(draw_key, data, config.alignment.batch, config.augment, config.rendition_probability)
            xp = batch["xp_flux"] + config.xp_noise * jax.random.normal(noise_key, batch["xp_flux"].shape)
            (z_lamost, z_xp, decoded), updates = self.model.apply(
                {"params": joined(params["model"], data["towers"]), "batch_stats": stats},
                batch["flux"],
                xp,
                batch["valid"],
                batch["xp_valid"],
                train=True,
                rngs={"dropout": drop_key},
                mutable=["batch_stats"],
            )
            aligned = losses.contrastive(z_xp, z_lamost)
            standard, _, _ = standardise(batch["flux"], batch["valid"])
            rebuilt = losses.l1(decoded["lamost"], standard, batch["valid"])
            rebuilt += losses.l1(decoded["gaia_xp"], batch["xp_flux"], batch["xp_valid"])
            crossed = losses.l1(decoded["lamost_cross"], batch["flux"], batch["valid"])
            crossed += losses.l1(decoded["gaia_xp_cross"], batch["xp_flux"], batch["xp_valid"])
            labelled = label_loss(self.probe.apply({"params": params["probe"]}, z_lamost), batch["labels"])
            total = aligned + rebuilt + crossed + config.label_weight * labelled
            metrics = {"contrastive": aligned, "rebuilt": rebuilt, "crossed": crossed, "labels": labelled}
            return total, (updates["batch_stats"], metrics)

        @jax.jit
        def probed(params: Tree, flux: jax.Array) -> jax.Array:
            z = self._project(joined(params["model"], towers), flux, None)
            return self.probe.apply({"params": params["probe"]}, z)

        params, stats = self._stage(
            "alignment",
            loss,
            config.alignment,
            {"model": trained, "probe": probe},
            variables["batch_stats"],
            key,
            probed,
            data={**self.data, "towers": jax.tree.map(jax.lax.stop_gradient, towers)},
        )
        return {"params": joined(params["model"], towers), "batch_stats": stats}

    def train_heads(self, variables: Tree) -> tuple[Tree, Tree]:
        """Stage 4: the label heads, on a pool of features of varied spectra."""
        key = jax.random.fold_in(self.key, 4)
        params, batch_stats = dict(variables["params"]), dict(variables["batch_stats"])
        pools, labels = self._feature_pool(variables, key)
        self.domain = self.fit_domain(variables, pools["mlp1"], key)
        stats: Tree = {}
        for name, pool in pools.items():
            scaler = {"feature_mean": pool.mean(axis=0), "feature_std": pool.std(axis=0) + 1e-6}
            stats[name] = {**scaler, **self.scaler}
            head = self.head.init(key, pool[:2])
            params[name], batch_stats[name] = self._train_head(
                name,
                head,
                (pool - scaler["feature_mean"]) / scaler["feature_std"],
                labels,
                variables,
                scaler,
                key,
            )
        return {"params": params, "batch_stats": batch_stats}, jax.tree.map(np.asarray, stats)

    def fit_domain(self, variables: Tree, inside: jax.Array, key: jax.Array) -> Domain:
        """Fit the domain to features (n, d) of varied spectra inside, and of `outside`, varied too."""
        found = {}
        for name, spectra in self.outside.items():
            # As many as observed as of all renditions together, each varied anew.
            observed = np.repeat(spectra[:, :1], max(spectra.shape[1] - 1, 1), axis=1)
            flux = jnp.asarray(
                np.concatenate([observed, spectra[:, 1:]], axis=1).reshape(-1, spectra.shape[2])
            )
            parts = [
                self._features(
                    variables, *self._varied(jax.random.fold_in(key, start), flux[start : start + 256])
                )
                for start in range(0, len(flux), 256)
            ]
            found[name] = np.concatenate([np.asarray(part["mlp1"]) for part in parts])
        return Domain.fit(inside, found)

    @functools.cached_property
    def _varied(self) -> Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]:
        return jax.jit(lambda key, flux: augment(key, flux, self.config.head_augment))

    def _train_head(
        self,
        name: str,
        head: Tree,
        pool: jax.Array,
        labels: jax.Array,
        towers: Tree,
        scaler: Tree,
        key: jax.Array,
    ) -> tuple[Tree, Tree]:
        config = self.config.heads

        def loss(params: Tree, stats: Tree, data: Tree, key: jax.Array) -> Any:
            choose, drop = jax.random.split(key)
            rows = jax.random.randint(choose, (config.batch,), 0, len(data["pool"]))
            predicted, updates = self.head.apply(
                {"params": params, "batch_stats": stats},
                data["pool"][rows],
                use_running_average=False,
                deterministic=False,
                per_member=True,
                rngs={"dropout": drop},
                mutable=["batch_stats"],
            )
            targets = jnp.broadcast_to(data["labels"][rows], predicted.shape)
            return label_loss(predicted, targets), (updates["batch_stats"], {})

        # The clean spectra do not change: their features are made once.
        clean = jnp.concatenate(
            [
                self._features(towers, self.data["flux"][i : i + 256], None)[name]
                for i in range(0, len(self.data["flux"]), 256)
            ]
        )
        clean = (clean - scaler["feature_mean"]) / scaler["feature_std"]

        def validate(params: Tree, stats: Tree) -> dict[str, float]:
            predicted = self.head.apply({"params": params, "batch_stats": stats}, clean)
            return self._scores(predicted)

        return run_stage(
            name,
            loss,
            config,
            params=head["params"],
            batch_stats=head["batch_stats"],
            data={"pool": pool, "labels": labels},
            key=key,
            folder=self.folder,
            validate=validate,
            say=self.say,
        )

    def _feature_pool(self, variables: Tree, key: jax.Array) -> tuple[dict[str, jax.Array], jax.Array]:
        """Draw `head_pool` varied spectra and embed them: {head: (pool, d)} and labels (pool, k)."""
        size = 256
        config = self.config
        make = jax.jit(
            lambda key, data: draw(key, data, size, config.head_augment, config.head_rendition_probability)
        )
        features: dict[str, list[jax.Array]] = {"mlp1": [], "mlp2": []}
        labels = []
        for index in range(self.config.head_pool // size):
            batch = make(jax.random.fold_in(key, index), self.data)
            for name, values in self._features(variables, batch["flux"], batch["valid"]).items():
                features[name].append(values)
            labels.append(batch["labels"])
        self.say(f"heads: features of {size * len(labels)} varied spectra")
        return {name: jnp.concatenate(values) for name, values in features.items()}, jnp.concatenate(labels)

    @functools.cached_property
    def _features(self) -> Callable[..., dict[str, jax.Array]]:
        @jax.jit
        def features(variables: Tree, flux: jax.Array, valid: jax.Array | None) -> dict[str, jax.Array]:
            params = variables["params"]
            tokens = self._backbone(
                params["lamost"]["backbone"], tokenise(flux, self.model_config.specformer, valid)
            )
            z = self.model.apply(
                {"params": params}, tokens, method=lambda model, tokens: model.lamost.projection(tokens)
            )
            return {"mlp1": tokens.mean(axis=1), "mlp2": z}

        return features

    def _backbone(self, params: Tree, tokens: jax.Array) -> jax.Array:
        return self.model.apply(
            {"params": {"lamost": {"backbone": params, "projection": {}}}},
            tokens,
            method=lambda model, tokens: model.lamost.backbone(tokens),
        )

    def _project(self, params: Tree, flux: jax.Array, valid: jax.Array | None) -> jax.Array:
        return self.model.apply({"params": params}, flux, valid, method="encode_lamost")

    def _stage(
        self,
        name: str,
        loss: Any,
        config: StageConfig,
        params: Tree,
        stats: Tree,
        key: jax.Array,
        predict: Callable[[Tree, jax.Array], jax.Array] | None,
        data: Tree | None = None,
    ) -> tuple[Tree, Tree]:
        def validate(params: Tree, stats: Tree) -> dict[str, float]:
            if predict is None:
                return {}
            flux = self.data["flux"]
            parts = [predict(params, flux[start : start + 128]) for start in range(0, len(flux), 128)]
            return self._scores(jnp.concatenate(parts))

        return run_stage(
            name,
            loss,
            config,
            params=params,
            batch_stats=stats,
            data=self.data if data is None else data,
            key=key,
            folder=self.folder,
            validate=validate,
            say=self.say,
        )

    def _scores(self, predicted: jax.Array) -> dict[str, float]:
        """Score the [Fe/H] of the held-out stars, or of the training stars where none is held out."""
        allowed = np.asarray(self.data["allowed"])
        chosen, word = (allowed, "train") if allowed.all() else (~allowed, "held-out")
        column = self.model_config.labels.index("fe_h")
        mean, std = self.scaler["label_mean"][column], self.scaler["label_std"][column]
        truth = np.asarray(self.data["labels"])[chosen, column] * std + mean
        guess = np.asarray(predicted)[chosen, column] * std + mean
        return {
            f"{word} sigma([Fe/H])": float(robust_sigma(guess - truth)),
            f"{word} R2": float(r2(truth, guess)),
        }

    @staticmethod
    def _replaced(variables: Tree, survey: str, backbone: Tree) -> Tree:
        params = dict(variables["params"])
        params[survey] = {**params[survey], "backbone": backbone}
        return {**variables, "params": params}
