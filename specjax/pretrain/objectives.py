"""Training objectives of the stages that train the towers and decoders.

Each is a `loop.StageLoss`: it draws its batch from the data and returns the loss, the batch statistics and
the parts of the loss to report.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from specjax.config import ModelConfig
from specjax.models.apply import apply
from specjax.models.label_head import AuxiliaryHead
from specjax.models.specclip import SpecCLIP
from specjax.models.specformer import SpecFormer
from specjax.models.tokens import standardise, tokenise
from specjax.models.xp_autoencoder import XPAutoencoder, xp_vector
from specjax.pretrain.batches import Draw
from specjax.pretrain.config import PretrainConfig
from specjax.pretrain.loop import StageAux, StageLoss
from specjax.train import losses
from specjax.typing import Tree


class WithAuxiliaryHead(NamedTuple):
    """Parameters of a stage with the labels as auxiliary task.

    A tuple and not a dict: clipping sums the gradient norm in the order of the fields, and in the
    alphabetical order of a dict the sum would round differently, so that the shipped weights could not be
    reproduced exactly.
    """

    model: Tree
    auxiliary_head: Tree


def backbone_loss(config: PretrainConfig, model_config: ModelConfig, draw: Draw) -> StageLoss:
    """Make the loss of the LAMOST backbone: masked modelling and the labels from the mean token."""
    shape = model_config.specformer
    backbone, auxiliary_head = SpecFormer(shape), AuxiliaryHead(model_config.head.num_labels)

    def loss(
        params: WithAuxiliaryHead, stats: Tree, data: Tree, key: jax.Array
    ) -> tuple[jax.Array, StageAux]:
        draw_key, mask_key = jax.random.split(key)
        batch = draw(draw_key, data, config.backbone.batch, config.augment)
        tokens = tokenise(batch["flux"], shape, batch["valid"])
        # Half of the batch is masked: the labels are learnt from complete and from partly hidden spectra.
        half = jnp.arange(len(tokens))[:, None] < len(tokens) // 2
        hidden = losses.chunk_mask(mask_key, len(tokens), shape) & half
        embedded = apply(backbone, {"params": params.model}, jnp.where(hidden[..., None], 0, tokens))
        head = params.model["head"]
        masked = losses.masked_modelling(embedded @ head["kernel"] + head["bias"], tokens, hidden)
        predicted = apply(auxiliary_head, {"params": params.auxiliary_head}, embedded.mean(axis=1))
        labels = losses.label_loss(predicted, batch["labels"], batch["weight"])
        total = config.masked_weight * masked + config.label_weight * labels
        return total, (stats, {"masked": masked, "labels": labels})

    return loss


def autoencoder_loss(config: PretrainConfig, model_config: ModelConfig, draw: Draw) -> StageLoss:
    """Make the loss of the Gaia XP autoencoder: squared error of its inputs where they are valid."""
    network = XPAutoencoder(model_config.xp_autoencoder)

    def loss(params: Tree, stats: Tree, data: Tree, key: jax.Array) -> tuple[jax.Array, StageAux]:
        draw_key, noise_key = jax.random.split(key)
        batch = draw(draw_key, data, config.autoencoder.batch, config.augment)
        noise = config.xp_noise * jax.random.normal(noise_key, batch["xp_flux"].shape)
        target = xp_vector(batch["xp_flux"], batch["xp_valid"])
        noisy = xp_vector(batch["xp_flux"] + noise, batch["xp_valid"])
        decoded = apply(network, {"params": params}, noisy, method="reconstruct")
        counted = jnp.pad(batch["xp_valid"], ((0, 0), (2, 0)), constant_values=True)  # and mean and std
        value = (((decoded - target) ** 2) * counted).sum() / counted.sum()
        return value, (stats, {})

    return loss


def alignment_loss(config: PretrainConfig, model_config: ModelConfig, draw: Draw) -> StageLoss:
    """Make the loss of projections and decoders: contrastive, reconstruction, cross-prediction and labels.

    Its data also have the "backbones", which are frozen.
    """
    model, auxiliary_head = SpecCLIP(model_config), AuxiliaryHead(model_config.head.num_labels)

    def loss(
        params: WithAuxiliaryHead, stats: Tree, data: Tree, key: jax.Array
    ) -> tuple[jax.Array, StageAux]:
        draw_key, noise_key, drop_key = jax.random.split(key, 3)
        batch = draw(draw_key, data, config.alignment.batch, config.augment)
        xp = batch["xp_flux"] + config.xp_noise * jax.random.normal(noise_key, batch["xp_flux"].shape)
        (z_lamost, z_xp, decoded), updates = model.apply(
            {"params": add_backbones(params.model, data["backbones"]), "batch_stats": stats},
            batch["flux"],
            xp,
            batch["valid"],
            batch["xp_valid"],
            train=True,
            rngs={"dropout": drop_key},
            mutable=["batch_stats"],
        )
        # To tell observed pairs from simulated ones would be easier than to tell stars apart.
        contrastive = losses.contrastive(z_xp, z_lamost, batch["weight"] > 0)
        reconstruction, cross_prediction = _decoder_losses(decoded, batch)
        predicted = apply(auxiliary_head, {"params": params.auxiliary_head}, z_lamost)
        labels = losses.label_loss(predicted, batch["labels"], batch["weight"])
        total = contrastive + reconstruction + cross_prediction + config.label_weight * labels
        metrics = {
            "contrastive": contrastive,
            "reconstruction": reconstruction,
            "cross_prediction": cross_prediction,
            "labels": labels,
        }
        return total, (updates["batch_stats"], metrics)

    return loss


def _decoder_losses(decoded: dict[str, jax.Array], batch: Tree) -> tuple[jax.Array, jax.Array]:
    """Return the losses of reconstruction and of cross-prediction, each summed over both surveys."""
    standard, _, _ = standardise(batch["flux"], batch["valid"])
    reconstruction = losses.l1(decoded["lamost"], standard, batch["valid"])
    reconstruction += losses.l1(decoded["gaia_xp"], batch["xp_flux"], batch["xp_valid"])
    cross_prediction = losses.l1(decoded["lamost_cross"], batch["flux"], batch["valid"])
    cross_prediction += losses.l1(decoded["gaia_xp_cross"], batch["xp_flux"], batch["xp_valid"])
    return reconstruction, cross_prediction


def remove_backbones(params: Tree) -> tuple[Tree, Tree]:
    """Split the parameters of SpecCLIP into the rest and {survey: backbone}; inverse of `add_backbones`."""
    backbones = {survey: params[survey]["backbone"] for survey in ("lamost", "gaia_xp")}
    rest = {
        name: {k: v for k, v in tree.items() if k != "backbone"} if name in backbones else tree
        for name, tree in params.items()
    }
    return rest, backbones


def add_backbones(params: Tree, backbones: Tree) -> Tree:
    """Join parameters without backbones and {survey: backbone}."""
    return {
        name: {**tree, "backbone": backbones[name]} if name in backbones else tree
        for name, tree in params.items()
    }
