"""The stages of pretraining: those of the published model, on a corpus of observed stars.

1. backbone: masked modelling of LAMOST tokens, with the three labels as auxiliary task on the mean token (688
   stars are too few to learn from masked modelling alone which lines matter; the published model had
   millions);
2. autoencoder: the Gaia XP encoder;
3. alignment: contrastive loss, cross-prediction and reconstruction (weights 1:1:1) with frozen backbones, and
   the labels as auxiliary task on the projected vector;
4. heads: MLP1 on the mean token and MLP2 on the projected vector, with both towers frozen.

Every batch is drawn and augmented anew, so that the features hold for more than one instrument.
"""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from specjax.config import get_preset
from specjax.models.apply import apply
from specjax.models.label_head import AuxiliaryHead
from specjax.models.specclip import SpecCLIP
from specjax.models.specformer import SpecFormer
from specjax.models.tokens import tokenise
from specjax.pretrain.batches import Material
from specjax.pretrain.config import PretrainConfig
from specjax.pretrain.heads import HeadTraining, Trained
from specjax.pretrain.loop import run_stage
from specjax.pretrain.objectives import (
    WithAuxiliaryHead,
    add_backbones,
    alignment_loss,
    autoencoder_loss,
    backbone_loss,
    remove_backbones,
)
from specjax.progress import Say, silent
from specjax.typing import AnyArray, Tree

AT_ONCE = 128  # spectra to predict at a time in validation


class Pretraining:
    """The stages of a run; each returns new variables, so that stages can be run one by one."""

    def __init__(
        self,
        material: Material,
        config: PretrainConfig,
        folder: Path | None = None,
        say: Say = silent,
        out_of_range: Mapping[str, AnyArray] | None = None,
    ) -> None:
        """Prepare data and modules.

        Args:
            material: what the stages train on, see `batches.make_data`.
            config: schedules and augmentation.
            folder: where training states are kept for resuming; None keeps none.
            say: takes lines of progress.
            out_of_range: spectra (m, 1 + k, p) by kind of star, see `corpus.out_of_range_stars`.
        """
        self.config = config
        self.model_config = get_preset(config.preset)
        self.data, self.validation, self.scaler, self.draw = material
        self.out_of_range = dict(out_of_range or {})
        self.model = SpecCLIP(self.model_config)
        self.auxiliary_head = AuxiliaryHead(self.model_config.head.num_labels)
        self.key = jax.random.key(config.seed)
        self.run_stage = functools.partial(run_stage, folder=folder, say=say)
        self.heads = HeadTraining(
            config,
            self.model_config,
            material,
            run_stage=self.run_stage,
            say=say,
        )

    def run(self) -> Trained:
        """Run all stages."""
        variables = self.initial()
        variables = self.train_backbone(variables)
        variables = self.train_autoencoder(variables)
        variables = self.align(variables)
        return self.train_heads(variables)

    def initial(self) -> Tree:
        """Initialise both towers and the decoders."""
        sizes = (self.model_config.specformer.num_pixels, self.model_config.xp_autoencoder.num_pixels)
        flux, xp = (jnp.zeros((2, pixels)) for pixels in sizes)
        return self.model.init(jax.random.fold_in(self.key, 0), flux, xp)

    def train_backbone(self, variables: Tree) -> Tree:
        """Stage 1: the LAMOST backbone, by masked modelling and labels."""
        shape = self.model_config.specformer
        key = jax.random.fold_in(self.key, 1)
        params = self._with_auxiliary_head(variables["params"]["lamost"]["backbone"], shape.dim, key)

        @jax.jit
        def predict(params: WithAuxiliaryHead, flux: jax.Array) -> jax.Array:
            embedded = apply(SpecFormer(shape), {"params": params.model}, tokenise(flux, shape))
            return apply(self.auxiliary_head, {"params": params.auxiliary_head}, embedded.mean(axis=1))

        params, _ = self.run_stage(
            "backbone",
            backbone_loss(self.config, self.model_config, self.draw),
            self.config.backbone,
            params=params,
            batch_stats={},
            data=self.data,
            key=key,
            validate=self._scoring(predict),
        )
        return _replace_backbone(variables, "lamost", params.model)

    def train_autoencoder(self, variables: Tree) -> Tree:
        """Stage 2: the Gaia XP autoencoder."""
        params, _ = self.run_stage(
            "autoencoder",
            autoencoder_loss(self.config, self.model_config, self.draw),
            self.config.autoencoder,
            params=variables["params"]["gaia_xp"]["backbone"],
            batch_stats={},
            data=self.data,
            key=jax.random.fold_in(self.key, 2),
        )
        return _replace_backbone(variables, "gaia_xp", params)

    def align(self, variables: Tree) -> Tree:
        """Stage 3: projections and decoders, with frozen backbones."""
        key = jax.random.fold_in(self.key, 3)
        trained, backbones = remove_backbones(variables["params"])

        @jax.jit
        def predict(params: WithAuxiliaryHead, flux: jax.Array) -> jax.Array:
            model = {"params": add_backbones(params.model, backbones)}
            z = apply(self.model, model, flux, None, method="encode_lamost")
            return apply(self.auxiliary_head, {"params": params.auxiliary_head}, z)

        params, stats = self.run_stage(
            "alignment",
            alignment_loss(self.config, self.model_config, self.draw),
            self.config.alignment,
            params=self._with_auxiliary_head(trained, self.model_config.projection.dim, key),
            batch_stats=variables["batch_stats"],
            data={**self.data, "backbones": backbones},
            key=key,
            validate=self._scoring(predict),
        )
        return {"params": add_backbones(params.model, backbones), "batch_stats": stats}

    def train_heads(self, variables: Tree) -> Trained:
        """Stage 4: the label heads and the out-of-domain flags."""
        return self.heads.run(variables, self.out_of_range, jax.random.fold_in(self.key, 4))

    def _with_auxiliary_head(self, params: Tree, features: int, key: jax.Array) -> WithAuxiliaryHead:
        """Add a new auxiliary head on that number of features."""
        head: Any = self.auxiliary_head.init(key, jnp.zeros((1, features)))
        return WithAuxiliaryHead(params, head["params"])

    def _scoring(
        self, predict: Callable[[WithAuxiliaryHead, jax.Array], jax.Array]
    ) -> Callable[[WithAuxiliaryHead, Tree], dict[str, float]]:
        """Make the validation of a stage from its predictions of standardised labels."""

        def validate(params: WithAuxiliaryHead, stats: Tree) -> dict[str, float]:
            flux = self.validation.flux
            starts = range(0, len(flux), AT_ONCE)
            predicted = jnp.concatenate([predict(params, flux[start : start + AT_ONCE]) for start in starts])
            return self.validation.scores(predicted, self.scaler, self.model_config.labels.index("fe_h"))

        return validate


def _replace_backbone(variables: Tree, survey: str, backbone: Tree) -> Tree:
    params = dict(variables["params"])
    params[survey] = {**params[survey], "backbone": backbone}
    return {**variables, "params": params}
