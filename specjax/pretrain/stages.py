"""The stages of pretraining: those of the published model.

1. backbone: masked modelling of LAMOST tokens;
2. autoencoder, or xp-transformer: the Gaia XP encoder;
3. alignment: contrastive loss, cross-prediction and reconstruction (weights 1:1:1) with frozen backbones;
4. heads: MLP1 on the mean token and MLP2 on the projected vector, with both towers frozen.

The mini models have the labels as auxiliary task on the mean token and on the projected vector, because 688
stars are too few to learn from masked modelling alone which lines matter (the published model had millions).
Their batches are drawn and augmented anew, so that the features hold for more than one instrument; those of
large models are streamed from files.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from specjax.config import ModelConfig, SpecFormerConfig, get_preset
from specjax.errors import ConfigError
from specjax.models.apply import apply
from specjax.models.label_head import AuxiliaryHead
from specjax.models.products import token_mean
from specjax.models.specclip import SpecCLIP
from specjax.models.specformer import SpecFormer
from specjax.models.tokens import tokenise
from specjax.pretrain.batches import Material
from specjax.pretrain.config import FLOAT32, Compute, PretrainConfig
from specjax.pretrain.heads import HeadTraining, Trained
from specjax.pretrain.loop import run_stage, stage_mesh
from specjax.pretrain.objectives import (
    Alignment,
    WithAuxiliaryHead,
    add_backbones,
    autoencoder_loss,
    backbone_loss,
    loss_evaluation,
    remove_backbones,
    xp_transformer_loss,
)
from specjax.pretrain.programs import DEFAULTS, Evaluation, LoopOptions, StageLoss
from specjax.progress import Say, silent
from specjax.typing import AnyArray, Tree

AT_ONCE = 128  # spectra to predict at a time in validation
TOWERS = {
    "backbone": ("lamost",),
    "autoencoder": ("gaia_xp",),
    "xp-transformer": ("gaia_xp",),
    "alignment": ("lamost", "gaia_xp"),
    "heads": ("lamost",),
}
"""The stages, in their order, and the towers whose spectra they read."""


class Pretraining:
    """The stages of a run; each returns new variables, so that stages can be run one by one."""

    def __init__(
        self,
        material: Material,
        config: PretrainConfig,
        folder: Path | None = None,
        say: Say = silent,
        out_of_range: Mapping[str, AnyArray] | None = None,
        *,
        model_config: ModelConfig | None = None,
        compute: Compute = FLOAT32,
        options: LoopOptions = DEFAULTS,
    ) -> None:
        """Prepare data and modules.

        Args:
            material: what the stages train on, see `batches.make_data`.
            config: schedules and augmentation.
            folder: where training states are kept for resuming; None keeps none.
            say: takes lines of progress.
            out_of_range: spectra (m, 1 + k, p) by kind of star, see `corpus.out_of_range_stars`.
            model_config: sizes of the model, by default those of the preset.
            compute: how the networks compute.
            options: how the stages run; alignment itself takes care of `compute.accumulate`.
        """
        self.config, self.compute = config, compute
        self.model_config = model_config or get_preset(config.preset)
        self.data, self.validation, self.scaler, self.draw, self.source = material
        self.out_of_range = dict(out_of_range or {})
        self.model = SpecCLIP(self.model_config)
        self.auxiliary_head = AuxiliaryHead(self.model_config.head.num_labels)
        self.key = jax.random.key(config.seed)
        self.run_stage = functools.partial(run_stage, folder=folder, say=say, options=options)
        # Alignment and heads have batches that must stay whole; alignment itself embeds them in parts.
        self.options, self.whole = options, dataclasses.replace(options, accumulate=1)
        self.heads = HeadTraining(
            config,
            self.model_config,
            material,
            run_stage=functools.partial(self.run_stage, options=self.whole),
            say=say,
        )

    def run(self) -> Trained:
        """Run all stages."""
        variables = self.initial()
        variables = self.train_backbone(variables)
        variables = self.train_autoencoder(variables)
        variables = self.align(variables)
        return self.train_heads(variables)

    def initial_parts(self, stages: Sequence[str]) -> Tree:
        """Initialise what the stages train: everything for alignment, otherwise the encoders alone.

        An encoder starts from the same values whether it is trained alone or in a sequence.
        """
        transformer, parts = self.model_config.xp_transformer, {}
        if "xp-transformer" in stages and transformer is not None:
            parts["gaia_xp"] = self._initial_transformer(transformer)
        surveys = {"backbone": "lamost", "autoencoder": "gaia_xp"}
        chosen = [surveys[stage] for stage in stages if stage in surveys]
        variables = self.initial() if chosen or "alignment" in stages else {}
        if "alignment" in stages:
            return variables
        parts |= {survey: variables["params"][survey]["backbone"] for survey in chosen}
        return {"params": {survey: {"backbone": params} for survey, params in parts.items()}}

    def _initial_transformer(self, shape: SpecFormerConfig) -> Tree:
        tokens = jnp.zeros((1, shape.num_tokens, shape.token_dim))
        return jax.jit(SpecFormer(shape).init)(jax.random.fold_in(self.key, 0), tokens)["params"]

    def initial(self) -> Tree:
        """Initialise both towers and the decoders."""
        sizes = (self.model_config.specformer.num_pixels, self.model_config.xp_autoencoder.num_pixels)
        flux, xp = (jnp.zeros((2, pixels)) for pixels in sizes)
        return self.model.init(jax.random.fold_in(self.key, 0), flux, xp)

    def run_stages(self, stages: Sequence[str], variables: Tree) -> Trained:
        """Run some of the stages, see TOWERS; the variables may lack parts that they do not need."""
        runs = {
            "backbone": self.train_backbone,
            "autoencoder": self.train_autoencoder,
            "xp-transformer": self.train_xp_transformer,
            "alignment": self.align,
        }
        for stage in [stage for stage in TOWERS if stage in stages and stage in runs]:
            variables = runs[stage](variables)
        return self.train_heads(variables) if "heads" in stages else Trained(variables, {}, None)

    def check_input(self, stages: Sequence[str]) -> None:
        """Check that the files have what the stages read, before anything is trained.

        Raises:
            DataError: no file has the spectra of a stage.
            ConfigError: they do not fill a batch, or devices and options do not divide it.
        """
        for stage in [stage for stage in stages if stage != "heads"]:
            config = self.config.autoencoder if stage == "xp-transformer" else getattr(self.config, stage)
            stage_mesh(config, self.options)
            self._input(stage, config.batch, lambda *given: {})

    def train_backbone(self, variables: Tree) -> Tree:
        """Stage 1: the LAMOST backbone, by masked modelling and labels."""
        shape = self.model_config.specformer
        key = jax.random.fold_in(self.key, 1)
        params = self._with_auxiliary_head(variables["params"]["lamost"]["backbone"], shape.dim, key)
        loss = backbone_loss(self.config, self.model_config, self.draw, self.compute)

        @jax.jit
        def predict(params: WithAuxiliaryHead, flux: jax.Array) -> jax.Array:
            embedded = apply(SpecFormer(shape), {"params": params.model}, tokenise(flux, shape))
            return apply(self.auxiliary_head, {"params": params.auxiliary_head}, token_mean(embedded))

        params, _ = self.run_stage(
            "backbone",
            loss,
            self.config.backbone,
            params=params,
            batch_stats={},
            data=self.data,
            key=key,
            validate=self._scoring(predict),
            **self._input("backbone", self.config.backbone.batch, loss_evaluation(loss)),
        )
        return _replace_backbone(variables, "lamost", params.model)

    def train_autoencoder(self, variables: Tree) -> Tree:
        """Stage 2: the Gaia XP autoencoder."""
        loss = autoencoder_loss(self.config, self.model_config, self.draw, self.compute)
        return self._train_xp("autoencoder", loss, variables)

    def train_xp_transformer(self, variables: Tree) -> Tree:
        """Stage 2 with the Gaia XP transformer in place of the autoencoder."""
        shape = self.model_config.xp_transformer
        if shape is None:
            raise ConfigError(f"the preset {self.model_config.name!r} has no Gaia XP transformer")
        loss = xp_transformer_loss(self.config, shape, self.draw, self.compute)
        return self._train_xp("xp-transformer", loss, variables)

    def _train_xp(self, name: str, loss: StageLoss, variables: Tree) -> Tree:
        params, _ = self.run_stage(
            name,
            loss,
            self.config.autoencoder,
            params=variables["params"]["gaia_xp"]["backbone"],
            batch_stats={},
            data=self.data,
            key=jax.random.fold_in(self.key, 2),
            **self._input(name, self.config.autoencoder.batch, loss_evaluation(loss)),
        )
        return _replace_backbone(variables, "gaia_xp", params)

    def align(self, variables: Tree) -> Tree:
        """Stage 3: projections and decoders, with frozen backbones."""
        key = jax.random.fold_in(self.key, 3)
        trained, backbones = remove_backbones(variables["params"])
        objective = Alignment(self.config, self.model_config, self.draw, self.compute)

        @jax.jit
        def predict(params: WithAuxiliaryHead, flux: jax.Array) -> jax.Array:
            model = {"params": add_backbones(params.model, backbones)}
            z = apply(self.model, model, flux, None, method="encode_lamost")
            return apply(self.auxiliary_head, {"params": params.auxiliary_head}, z)

        params, stats = self.run_stage(
            "alignment",
            objective.loss,
            self.config.alignment,
            params=self._with_auxiliary_head(trained, self.model_config.projection.dim, key),
            batch_stats=variables.get("batch_stats", {}),
            data={**self.data, "backbones": backbones},
            key=key,
            validate=self._scoring(predict),
            options=self.whole,
            **self._input("alignment", self.config.alignment.batch, objective.evaluate),
        )
        return {"params": add_backbones(params.model, backbones), "batch_stats": stats}

    def train_heads(self, variables: Tree) -> Trained:
        """Stage 4: the label heads and the out-of-domain flags."""
        return self.heads.run(variables, self.out_of_range, jax.random.fold_in(self.key, 4))

    def _with_auxiliary_head(self, params: Tree, features: int, key: jax.Array) -> WithAuxiliaryHead:
        """Add a new auxiliary head on that number of features, an empty one if labels have no part."""
        if not self.config.label_weight:
            return WithAuxiliaryHead(params, {})
        head: Any = self.auxiliary_head.init(key, jnp.zeros((1, features)))
        return WithAuxiliaryHead(params, head["params"])

    def _scoring(
        self, predict: Callable[[WithAuxiliaryHead, jax.Array], jax.Array]
    ) -> Callable[[WithAuxiliaryHead, Tree], dict[str, float]] | None:
        """Make the validation of a stage from its predictions of standardised labels, if it makes any."""
        stars = self.validation
        if stars is None or not self.config.label_weight:
            return None

        def validate(params: WithAuxiliaryHead, stats: Tree) -> dict[str, float]:
            flux = stars.flux
            starts = range(0, len(flux), AT_ONCE)
            predicted = jnp.concatenate([predict(params, flux[start : start + AT_ONCE]) for start in starts])
            return stars.scores(predicted, self.scaler, self.model_config.labels.index("fe_h"))

        return validate

    def _input(self, name: str, batch: int, evaluation: Evaluation) -> dict[str, Any]:
        """Return the arguments of `run_stage` for a stage whose batches are streamed."""
        if self.source is None:
            return {}
        feed = self.source.feed(TOWERS[name], batch)
        held_out = self.source.held_out_batches(TOWERS[name], batch)
        return {"feed": feed, "evaluation": evaluation, "held_out": held_out}


def _replace_backbone(variables: Tree, survey: str, backbone: Tree) -> Tree:
    params = dict(variables["params"])
    params[survey] = {**params.get(survey, {}), "backbone": backbone}
    return {**variables, "params": params}
