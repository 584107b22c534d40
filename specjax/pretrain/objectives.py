"""Training objectives of the stages that train the towers and decoders.

Each is a `loop.StageLoss`: it draws its batch from the data and returns the loss, the batch statistics and
the parts of the loss to report. With `label_weight` 0 labels have no part in it, as published.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from specjax.config import ModelConfig, SpecFormerConfig
from specjax.models.apply import apply
from specjax.models.label_head import AuxiliaryHead
from specjax.models.products import matmul, token_mean
from specjax.models.specclip import SpecCLIP
from specjax.models.specformer import SpecFormer
from specjax.models.tokens import standardise, tokenise
from specjax.models.xp_autoencoder import XPAutoencoder, xp_vector
from specjax.pretrain.accumulate import join_rows, split_rows
from specjax.pretrain.batches import Draw
from specjax.pretrain.config import FLOAT32, Compute, PretrainConfig
from specjax.pretrain.programs import Evaluation, StageAux, StageLoss
from specjax.train import losses
from specjax.typing import Tree


class WithAuxiliaryHead(NamedTuple):
    """Parameters of a stage with the labels as auxiliary task; without it, the head is empty.

    A tuple and not a dict: clipping sums the gradient norm in the order of the fields, and in the
    alphabetical order of a dict the sum would round differently, so that the shipped weights could not be
    reproduced exactly.
    """

    model: Tree
    auxiliary_head: Tree


def backbone_loss(
    config: PretrainConfig, model_config: ModelConfig, draw: Draw, compute: Compute = FLOAT32
) -> StageLoss:
    """Make the loss of the LAMOST backbone: masked modelling and the labels from the mean token."""
    shape = model_config.specformer
    backbone = SpecFormer(shape, dtype=compute.module_dtype, remat=compute.remat)
    auxiliary_head = AuxiliaryHead(model_config.head.num_labels)

    def loss(
        params: WithAuxiliaryHead, stats: Tree, data: Tree, key: jax.Array
    ) -> tuple[jax.Array, StageAux]:
        draw_key, mask_key = jax.random.split(key)
        batch = draw(draw_key, data, config.backbone.batch, config.augment)
        tokens = tokenise(batch["flux"], shape, batch["valid"])
        # With half of the batch masked, labels are learnt from complete and from partly hidden spectra.
        masked_rows = jnp.arange(len(tokens))[:, None] < int(len(tokens) * config.masked_rows)
        hidden = losses.chunk_mask(mask_key, len(tokens), shape) & masked_rows
        embedded = apply(backbone, {"params": params.model}, jnp.where(hidden[..., None], 0, tokens))
        masked = _masked(params.model["head"], embedded, tokens, hidden)
        if not config.label_weight:
            return config.masked_weight * masked, (stats, {})
        predicted = apply(auxiliary_head, {"params": params.auxiliary_head}, token_mean(embedded))
        labels = losses.label_loss(predicted, batch["labels"], batch["weight"])
        total = config.masked_weight * masked + config.label_weight * labels
        return total, (stats, {"masked": masked, "labels": labels})

    return loss


def xp_transformer_loss(
    config: PretrainConfig, shape: SpecFormerConfig, draw: Draw, compute: Compute = FLOAT32
) -> StageLoss:
    """Make the loss of the Gaia XP transformer: masked modelling."""
    backbone = SpecFormer(shape, dtype=compute.module_dtype, remat=compute.remat)

    def loss(params: Tree, stats: Tree, data: Tree, key: jax.Array) -> tuple[jax.Array, StageAux]:
        draw_key, mask_key = jax.random.split(key)
        batch = draw(draw_key, data, config.autoencoder.batch, config.augment)
        tokens = tokenise(batch["xp_flux"], shape, batch["xp_valid"])
        hidden = losses.chunk_mask(mask_key, len(tokens), shape)
        embedded = apply(backbone, {"params": params}, jnp.where(hidden[..., None], 0, tokens))
        return _masked(params["head"], embedded, tokens, hidden), (stats, {})

    return loss


def _masked(head: Tree, embedded: jax.Array, tokens: jax.Array, hidden: jax.Array) -> jax.Array:
    """Return the loss of masked modelling of embedded tokens (n, t, d) by the layer `head`."""
    return losses.masked_modelling(matmul(embedded, head["kernel"]) + head["bias"], tokens, hidden)


def autoencoder_loss(
    config: PretrainConfig, model_config: ModelConfig, draw: Draw, compute: Compute = FLOAT32
) -> StageLoss:
    """Make the loss of the Gaia XP autoencoder: squared error of its inputs where they are valid."""
    network = XPAutoencoder(model_config.xp_autoencoder, compute.module_dtype)

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


class Alignment:
    """The objective of projections and decoders: contrastive, reconstruction, cross-prediction and labels.

    A model without decoders has the contrastive term only, and in the "split" form that term uses the shared
    part of the vectors. The data also have the "backbones", which are frozen. With `compute.accumulate`, the
    backbones embed a batch in parts; the contrastive term is that of the whole batch.
    """

    def __init__(
        self, config: PretrainConfig, model_config: ModelConfig, draw: Draw, compute: Compute = FLOAT32
    ) -> None:
        """Make the modules."""
        self.config, self.model_config, self.draw, self.compute = config, model_config, draw, compute
        self.model = SpecCLIP(model_config, dtype=compute.module_dtype)
        self.auxiliary_head = AuxiliaryHead(model_config.head.num_labels)

    def loss(
        self, params: WithAuxiliaryHead, stats: Tree, data: Tree, key: jax.Array
    ) -> tuple[jax.Array, StageAux]:
        """Return the loss of a batch, see `loop.StageLoss`."""
        config = self.config
        draw_key, noise_key, drop_key = jax.random.split(key, 3)
        batch = self.draw(draw_key, data, config.alignment.batch, config.augment)
        xp = batch["xp_flux"] + config.xp_noise * jax.random.normal(noise_key, batch["xp_flux"].shape)
        (z_lamost, z_xp, decoded), updates = self._forward(params, stats, data, batch, xp, drop_key)
        total, metrics = self._terms(params, batch, z_lamost, z_xp, decoded)
        return total, (updates.get("batch_stats", stats), metrics)

    def evaluate(
        self, params: WithAuxiliaryHead, stats: Tree, data: Tree, key: jax.Array
    ) -> dict[str, jax.Array]:
        """Return the loss without dropout and noise, and how often a star's spectrum finds its partner.

        "top-k" is the fraction of LAMOST spectra whose own Gaia XP spectrum is among the k most similar ones
        of the batch.
        """
        batch = self.draw(key, data, self.config.alignment.batch, self.config.augment)
        (z_lamost, z_xp, decoded), _ = self._forward(params, stats, data, batch, batch["xp_flux"], None)
        total, metrics = self._terms(params, batch, z_lamost, z_xp, decoded)
        return {"loss": total, **metrics, **retrieval(self._shared(z_lamost), self._shared(z_xp))}

    def _forward(
        self,
        params: WithAuxiliaryHead,
        stats: Tree,
        data: Tree,
        batch: Tree,
        xp: jax.Array,
        drop_key: jax.Array | None,
    ) -> tuple[tuple[jax.Array, jax.Array, Tree], Mapping[str, Any]]:
        """Embed, project and decode a batch; without `drop_key` as in inference."""
        train, parts = drop_key is not None, self.compute.accumulate
        training: dict[str, Any] = {"train": train, "mutable": ["batch_stats"]}
        training |= {"rngs": {"dropout": drop_key}} if train else {}
        whole = add_backbones(params.model, data["backbones"])
        variables = {"params": whole, "batch_stats": stats}
        if parts == 1 or len(xp) % parts:
            given = batch["flux"], xp, batch["valid"], batch["xp_valid"]
            return self.model.apply(variables, *given, **training)

        def embed(part: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
            flux, xp, valid, xp_valid = part
            tokens = tokenise(flux, self.model_config.specformer, valid)
            run = {"params": whole}
            tokens = apply(self.model, run, tokens, method=lambda model, x: model.lamost.backbone(x))
            vector = xp_vector(xp, xp_valid)
            return tokens, apply(self.model, run, vector, method=lambda model, x: model.gaia_xp.backbone(x))

        cut = [split_rows(leaf, parts) for leaf in (batch["flux"], xp, batch["valid"], batch["xp_valid"])]
        tokens, latent = (join_rows(leaf) for leaf in jax.lax.map(embed, tuple(cut)))
        return self.model.apply(variables, tokens, latent, **training, method="project")

    def _terms(
        self, params: WithAuxiliaryHead, batch: Tree, z_lamost: jax.Array, z_xp: jax.Array, decoded: Tree
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Return the loss and its terms."""
        # To tell observed pairs from simulated ones would be easier than to tell stars apart.
        kind = batch["weight"] > 0 if "weight" in batch else None
        contrastive = losses.contrastive(self._shared(z_xp), self._shared(z_lamost), kind)
        total, metrics = contrastive, {"contrastive": contrastive}
        if decoded:
            reconstruction, cross_prediction = _decoder_losses(decoded, batch)
            total = contrastive + reconstruction + cross_prediction
            metrics |= {"reconstruction": reconstruction, "cross_prediction": cross_prediction}
        if self.config.label_weight:
            predicted = apply(self.auxiliary_head, {"params": params.auxiliary_head}, z_lamost)
            labels = losses.label_loss(predicted, batch["labels"], batch["weight"])
            total = total + self.config.label_weight * labels
            metrics["labels"] = labels
        return total, metrics

    def _shared(self, z: jax.Array) -> jax.Array:
        """Return the part of vectors (n, dim) that the contrastive term uses."""
        projection = self.model_config.projection
        return z[:, : projection.shared_dim] if projection.private_dim else z


def retrieval(z_lamost: jax.Array, z_xp: jax.Array, top: tuple[int, ...] = (1, 5)) -> dict[str, jax.Array]:
    """Return the fraction of rows of z_lamost (n, d) whose own row of z_xp is among the k most similar."""
    unit = [
        z / jnp.maximum(jnp.linalg.norm(z, axis=1, keepdims=True), losses.MIN_NORM) for z in (z_lamost, z_xp)
    ]
    similarity = matmul(unit[0], unit[1].T)
    rank = (similarity > jnp.diagonal(similarity)[:, None]).sum(axis=1)
    return {f"top-{k}": (rank < k).mean() for k in top}


def loss_evaluation(loss: StageLoss) -> Evaluation:
    """Make the evaluation of a loss that is the same in training and in inference."""

    def evaluate(params: Any, stats: Tree, data: Tree, key: jax.Array) -> dict[str, jax.Array]:
        value, (_, metrics) = loss(params, stats, data, key)
        return {"loss": value, **metrics}

    return evaluate


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
