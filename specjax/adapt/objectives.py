"""The objective of the adaptation: a weighted sum of terms, through every layer that is adapted below them.

| term        | data                                              | reaches                                |
|-------------|---------------------------------------------------|----------------------------------------|
| label       | labelled training stars                           | all groups below and in the heads      |
| masked      | unlabelled spectra and those of the training stars| LoRA1                                  |
| contrastive | unlabelled pairs of LAMOST and Gaia XP spectra    | LoRA1 and LoRA3                        |
| anchor      | training stars, and the pairs if there are any    | LoRA1 and LoRA3                        |

`train.loop.fit` compiles a program per loss object; `make_loss` returns one per `Problem`.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from specjax import lora
from specjax.adapt.tower import Entry, head_output, tower_features
from specjax.config import ModelConfig
from specjax.errors import ConfigError
from specjax.foundation.networks import module_dtype
from specjax.models.apply import apply
from specjax.models.specformer import SpecFormer
from specjax.models.tokens import tokenise
from specjax.train import losses
from specjax.train.loop import Loss
from specjax.train.micro_batches import PartLoss, summed
from specjax.typing import Tree


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective:
    """Weights of the terms of the loss; a term of weight 0 is not computed.

    Attributes:
        label: robust regression of the label.
        masked: masked modelling, as published, of unlabelled spectra and of those of the training stars.
        contrastive: alignment with the Gaia XP spectra of the unlabelled stars; other pairs of the batch are
            the negatives.
        anchor: squared distance of the features from those of the frozen model, relative to their length, for
            the spectra of the label and the contrastive term.

    Raises:
        ConfigError: a negative weight, none above 0, or an anchor without both of the terms it belongs to.
    """

    label: float = 1.0
    masked: float = 0.0
    contrastive: float = 0.0
    anchor: float = 0.0

    def __post_init__(self) -> None:
        weights = dataclasses.astuple(self)
        if min(weights) < 0 or not any(weights):
            raise ConfigError(f"the weights of an objective must be positive or 0, and not all 0: {self}")
        if self.anchor and not (self.label or self.contrastive):
            raise ConfigError(f"the anchor needs the label or the contrastive term: {self}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Problem:
    """What a program trains for, apart from parameters and data.

    Attributes:
        config: sizes of the model.
        dtype: type of the tower's matrix products.
        entry: where the program enters the tower.
        heads: heads in the label term.
        objective: weights of the terms.
        batch: rows of each term in a step; None uses all training stars in the label term.
        rows: rows that go through the tower at a time, a divisor of `batch`.
    """

    config: ModelConfig
    dtype: str
    entry: Entry
    heads: tuple[str, ...]
    objective: Objective
    batch: int | None
    rows: int | None = None


@functools.partial(jax.jit, static_argnums=0)
def tokens(config: ModelConfig, flux: jax.Array, valid: jax.Array) -> jax.Array:
    """Cut LAMOST flux (n, pixels) into tokens (n, t, token_dim); see `tokenise`."""
    return tokenise(flux, config.specformer, valid)


@functools.cache
def make_loss(problem: Problem) -> Loss:
    """Return the loss of one seed for `train.loop.fit`.

    Its arguments are

    - the trained leaves;
    - frozen: "params", from the entry on, "batch_stats" and "stats" (feature_mean and feature_std) by head,
      and "column" (), that of the label in their output, so that all labels have one program;
    - shared, or own where seeds differ: "labelled" and "pairs", inputs of the tower (n, ...) and (p, ...);
    - shared: "pool" (m, t, token_dim), tokens for masked modelling; "z_xp" (p, k), projected Gaia XP spectra;
      "frozen" {head: (n, d)} and "z_frozen" (p, k), features of the frozen model, for the anchor;
    - own: "rows" (a,) of the training stars, "y" {head: (a,)}, their standardised labels, "weight" (a,), 0
      for stars that are left out; "in_pool" (m,), True for the tokens that may be drawn;
    - a random key for the draws.

    Only what the terms of the objective need has to be there.
    """
    objective = problem.objective

    def loss(trained: Tree, frozen: Tree, shared: Tree, own: Tree, key: jax.Array) -> jax.Array:
        draw, mask, pair = jax.random.split(key, 3)
        given = {**shared, **own}
        total = jnp.zeros(())
        if objective.label:
            total += _label_term(problem, trained, frozen, given, draw)
        if objective.masked:
            total += objective.masked * _masked_term(problem, trained, frozen, given, mask)
        if objective.contrastive:
            total += _pair_term(problem, trained, frozen, given, pair)
        return total

    return loss


def _label_term(problem: Problem, trained: Tree, frozen: Tree, given: Tree, key: jax.Array) -> jax.Array:
    """Return the label and the anchor term of the training stars, weighted."""
    weight, rows, y = given["weight"], given["rows"], given["y"]
    if problem.batch is not None and problem.batch < len(rows):
        # Different stars, drawn among those of weight above 0 as long as there are any.
        order = jax.random.gumbel(key, weight.shape) + jnp.where(weight > 0, 0.0, -jnp.inf)
        drawn = jax.lax.top_k(order, problem.batch)[1]
        weight, rows, y = jax.tree.map(lambda leaf: leaf[drawn], (weight, rows, y))
    batch = {
        "inputs": jax.tree.map(lambda leaf: leaf[rows], given["labelled"]),
        "y": y,
        "weight": weight / jnp.maximum(weight.sum(), 1e-6),
    }
    if problem.objective.anchor:
        batch["frozen"] = jax.tree.map(lambda leaf: leaf[rows], given["frozen"])

    def part_loss(trained: Tree, frozen: Tree, part: Tree) -> jax.Array:
        params = lora.overlay(frozen["params"], trained)
        features = tower_features(
            problem.config, problem.dtype, params, part["inputs"], problem.entry, problem.heads
        )
        cost = jnp.zeros(())
        for head in problem.heads:
            stats = frozen["stats"][head]
            x = (features[head] - stats["feature_mean"]) / stats["feature_std"]
            predicted = head_output(problem.config, head, params, frozen["batch_stats"], x)
            mine = jax.lax.dynamic_index_in_dim(predicted, frozen["column"], axis=1, keepdims=False)
            residual = jnp.where(part["weight"] > 0, mine - part["y"][head], 0)
            each = problem.objective.label * losses.pseudo_huber(residual)
            if problem.objective.anchor:
                each += problem.objective.anchor * losses.relative_distance(
                    features[head], part["frozen"][head]
                )
            cost += (each * part["weight"]).sum()
        return cost

    return _in_parts(problem, part_loss, trained, frozen, batch)


def _masked_term(problem: Problem, trained: Tree, frozen: Tree, given: Tree, key: jax.Array) -> jax.Array:
    config, choose_and_mask = problem.config, jax.random.split(key)
    network = SpecFormer(config.specformer, lora=config.lora1, dtype=module_dtype(problem.dtype))
    assert problem.batch is not None
    logits = jnp.where(given["in_pool"], 0.0, -jnp.inf)
    drawn = given["pool"][jax.random.categorical(choose_and_mask[0], logits, shape=(problem.batch,))]
    hidden = losses.chunk_mask(choose_and_mask[1], problem.batch, config.specformer)

    def part_loss(trained: Tree, frozen: Tree, part: Tree) -> jax.Array:
        params = lora.overlay(frozen["params"], trained)["lamost"]["backbone"]
        masked = jnp.where(part["hidden"][..., None], 0, part["tokens"])
        predicted = apply(network, {"params": params}, masked, method="predict_tokens")
        return losses.masked_modelling_sum(predicted, part["tokens"], part["hidden"])

    batch = {"tokens": drawn, "hidden": hidden}
    return _in_parts(problem, part_loss, trained, frozen, batch) / jnp.maximum(hidden.sum(), 1)


def _pair_term(problem: Problem, trained: Tree, frozen: Tree, given: Tree, key: jax.Array) -> jax.Array:
    """Return the contrastive and the anchor term of the pairs, weighted."""
    assert problem.batch is not None
    pairs = len(given["z_xp"])
    rows = jax.random.choice(key, pairs, (min(problem.batch, pairs),), replace=False)
    inputs = jax.tree.map(lambda leaf: leaf[rows], given["pairs"])
    params = lora.overlay(frozen["params"], trained)
    z = tower_features(problem.config, problem.dtype, params, inputs, problem.entry, ("mlp2",))["mlp2"]
    cost = problem.objective.contrastive * losses.contrastive(given["z_xp"][rows], z)
    if problem.objective.anchor:
        cost += problem.objective.anchor * losses.relative_distance(z, given["z_frozen"][rows]).mean()
    return cost


def _in_parts(problem: Problem, part_loss: PartLoss, trained: Tree, frozen: Tree, batch: Tree) -> jax.Array:
    """Add up a loss that is a sum over rows, `problem.rows` of them at a time."""
    rows, count = problem.rows, len(jax.tree.leaves(batch)[0])
    if rows is None or count <= rows or count % rows:
        return part_loss(trained, frozen, batch)
    parts = jax.tree.map(lambda leaf: leaf.reshape(-1, rows, *leaf.shape[1:]), batch)
    return summed(part_loss, trained, frozen, parts)
