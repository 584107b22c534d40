"""The mini foundation from nothing: the stages of the published model on a corpus of real stars.

1. backbone: masked modelling of LAMOST-grid tokens, with the three labels as a second task on the mean token
   (688 stars are too few to learn from masks alone which lines matter; the published model saw millions);
2. autoencoder: the Gaia XP encoder;
3. alignment: contrastive, cross prediction and reconstruction (weights 1:1:1) with the backbones frozen, and
   the labels again as a second task on the projected vector;
4. heads: MLP1 on the mean token and MLP2 on the projected vector, both towers frozen.

Every batch is drawn and varied anew (`augment`): what is learnt must hold for more than one instrument.
"""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from specjax.config import ModelConfig, get_preset
from specjax.foundation.ood import Domain
from specjax.models.specclip import SpecCLIP
from specjax.models.specformer import SpecFormer
from specjax.models.tokens import standardise, tokenise
from specjax.models.xp_autoencoder import XPAutoencoder, xp_vector
from specjax.pretrain.auxiliary_head import LabelProbe
from specjax.pretrain.batches import draw, make_data
from specjax.pretrain.heads import HeadTraining
from specjax.pretrain.loop import StageConfig, run_stage
from specjax.pretrain.recipe import PretrainConfig
from specjax.progress import Say
from specjax.train import losses
from specjax.typing import Tree


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
        self.config = config
        self.model_config: ModelConfig = get_preset(config.preset)
        self.data, self.scored, self.scaler = make_data(corpus, config)
        self.model = SpecCLIP(self.model_config)
        self.probe = LabelProbe(self.model_config.head.num_labels)
        self.key = jax.random.key(config.seed)
        self.outside = dict(outside or {})
        self.domain: Domain | None = None  # known once the heads have their features
        self.run_stage = functools.partial(run_stage, folder=folder, say=say)
        self.heads = HeadTraining(
            config,
            self.model_config,
            self.data,
            self.scored,
            self.scaler,
            run_stage=self.run_stage,
            say=say,
        )

    def run(self) -> tuple[Tree, Tree]:
        """Run all stages; returns ({"params", "batch_stats"}, stats of the heads)."""
        variables = self.initial()
        variables = self.train_backbone(variables)
        variables = self.train_autoencoder(variables)
        variables = self.align(variables)
        return self.train_heads(variables)

    def initial(self) -> Tree:
        """Initialise both towers and the decoders."""
        flux, xp = self.data["spectra"][:2, 0], self.data["xp_flux"][:2]
        return self.model.init(jax.random.fold_in(self.key, 0), flux, xp)

    def train_backbone(self, variables: Tree) -> Tree:
        """Stage 1: masked modelling and labels."""
        config, shape = self.config, self.model_config.specformer
        key = jax.random.fold_in(self.key, 1)
        probe = self.probe.init(key, jnp.zeros((1, shape.dim)))["params"]
        params = {"backbone": variables["params"]["lamost"]["backbone"], "probe": probe}

        def loss(params: Tree, stats: Tree, data: Tree, key: jax.Array) -> Any:
            draw_key, mask_key = jax.random.split(key)
            batch = draw(draw_key, data, config.backbone.batch, config.augment)
            tokens = tokenise(batch["flux"], shape, batch["valid"])
            # Half of the batch is masked: the labels must come out of whole and of partly hidden spectra.
            half = jnp.arange(len(tokens))[:, None] < len(tokens) // 2
            hidden = losses.chunk_mask(mask_key, len(tokens), shape) & half
            embedded = self._backbone(params["backbone"], jnp.where(hidden[..., None], 0, tokens))
            head = params["backbone"]["head"]
            modelled = losses.masked_modelling(embedded @ head["kernel"] + head["bias"], tokens, hidden)
            predicted = self.probe.apply({"params": params["probe"]}, embedded.mean(axis=1))
            labelled = losses.label_loss(predicted, batch["labels"])
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
            network = XPAutoencoder(self.model_config.xp_autoencoder)
            rebuilt = network.apply({"params": params}, given, method="reconstruct")
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
            batch = draw(draw_key, data, config.alignment.batch, config.augment)
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
            labelled = losses.label_loss(
                self.probe.apply({"params": params["probe"]}, z_lamost), batch["labels"]
            )
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
        """Stage 4: the label heads and the domain, see `pretrain_heads`."""
        variables, stats, self.domain = self.heads.run(
            variables, self.outside, jax.random.fold_in(self.key, 4)
        )
        return variables, stats

    def _backbone(self, params: Tree, tokens: jax.Array) -> jax.Array:
        return SpecFormer(self.model_config.specformer).apply({"params": params}, tokens)

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
            flux = self.scored.flux
            parts = [predict(params, flux[start : start + 128]) for start in range(0, len(flux), 128)]
            column = self.model_config.labels.index("fe_h")
            return self.scored.scores(jnp.concatenate(parts), self.scaler, column)

        return self.run_stage(
            name,
            loss,
            config,
            params=params,
            batch_stats=stats,
            data=self.data if data is None else data,
            key=key,
            validate=validate,
        )

    @staticmethod
    def _replaced(variables: Tree, survey: str, backbone: Tree) -> Tree:
        params = dict(variables["params"])
        params[survey] = {**params[survey], "backbone": backbone}
        return {**variables, "params": params}
