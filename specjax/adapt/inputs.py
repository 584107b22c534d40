"""What the programs of an adaptation read of a target: inputs of the tower at any entry, computed once.

Factors of an earlier stage, `below`, have a leading axis of S seeds, as have inputs that depend on them.
"""

import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar, cast

import jax
import numpy as np

from specjax import lora
from specjax.adapt import forward, objectives
from specjax.adapt.buckets import padded
from specjax.adapt.feature_cache import cached
from specjax.adapt.target import Target
from specjax.adapt.tower import Entry, tower_inputs
from specjax.config import ModelConfig
from specjax.errors import DataError
from specjax.flags import Flag
from specjax.foundation import BackboneFeatures, Foundation, ModelInput
from specjax.spectra import Spectra
from specjax.typing import AnyArray, BoolArray, Float32Array, IntArray, StrArray, Tree

NO_PAIRS = "alignment of LoRA3 needs Gaia XP spectra of the unlabelled stars"

Rows = TypeVar("Rows", ModelInput, BackboneFeatures)


class TargetInputs:
    """Runs the frozen part of the tower on the labelled and unlabelled stars of a target."""

    def __init__(self, model: Foundation, target: Target, whole: "TargetInputs | None" = None) -> None:
        """Check the target's labelled spectra and fill masked pixels.

        Args:
            model: the model.
            target: the target.
            whole: of a target with the same unlabelled stars and at least these labelled ones, such as of
                another label: what is computed there is not computed again.
        """
        self.model, self.target, self._whole = model, target, whole
        if whole is None:
            self.labelled = model.model_input(target.labelled)
        else:
            self._rows = _rows_of(target.labelled.id, whole.target.labelled.id)
            flux, valid = whole.labelled
            self.labelled = ModelInput(flux[self._rows], valid[self._rows])
        self._adapted: list[tuple[list[jax.Array], BackboneFeatures]] = []
        self._hidden: dict[Entry, Tree] = {}

    @functools.cached_property
    def base(self) -> BackboneFeatures:
        """Features of the unadapted backbone for the labelled stars, leaves (n, ...)."""
        if self._whole is not None:
            return BackboneFeatures(*(leaf[self._rows] for leaf in self._whole.base))
        return self._first(self._run_backbone({}, self.labelled))

    @functools.cached_property
    def unlabelled(self) -> ModelInput:
        """The unlabelled spectra, m of them."""
        if self._whole is not None:
            return self._whole.unlabelled
        return self.model.model_input(self.target.unlabelled)

    def labelled_at(self, entry: Entry, heads: tuple[str, ...], below: Tree) -> tuple[Tree, bool]:
        """Return the inputs of the labelled stars at an entry, and whether seeds have inputs of their own.

        They have `buckets.padded(n)` rows, of which those beyond the n stars are padding.

        Args:
            entry: where the tower is entered.
            heads: heads whose features are wanted, for the entry "features".
            below: factors of earlier stages, leaves (S, ...).
        """
        if entry.is_in_backbone:
            if below:
                raise ValueError("a stage in the backbone cannot follow another")
            if entry not in self._hidden:
                self._hidden[entry] = self._hidden_at(entry)
            return self._hidden[entry], False
        features = self._adapted_backbone(lora.split(below, ["lora1"])[1])
        inputs = _padded(features, axis=1)._asdict()
        if entry.level == "features":
            seeds = max(forward.count_seeds(below), len(features.mean))
            rows = np.tile(np.arange(inputs["mean"].shape[1]), (seeds, 1))
            inputs = jax.tree.map(lambda leaf: np.broadcast_to(leaf, (seeds, *leaf.shape[1:])), inputs)
            backbone = Entry("backbone")
            inputs = forward.features(self.model, heads, below, inputs, backbone, rows, own=True)
        own = len(jax.tree.leaves(inputs)[0]) > 1
        return (inputs if own else jax.tree.map(lambda leaf: leaf[0], inputs)), own

    def pairs_at(self, entry: Entry, below: Tree) -> tuple[Tree, Float32Array, bool]:
        """Return what aligns the tower with Gaia XP, for the p unlabelled stars that have an XP spectrum.

        Returns:
            Inputs at the entry, projected XP spectra (p, dim) and whether seeds have inputs of their own.

        Raises:
            DataError: no unlabelled star has a Gaia XP spectrum.
        """
        z_xp, data = self._paired
        if entry.is_in_backbone:
            return self._tower_inputs(data, entry), z_xp, False
        features = self._run_backbone(below, data)
        own = len(features.mean) > 1
        return (features if own else self._first(features))._asdict(), z_xp, own

    def frozen_pairs(self) -> Float32Array:
        """Return the projected vectors (p, dim) of the frozen model for the stars of `pairs_at`."""
        return self.model.head_features(self._first(self._run_backbone({}, self._paired[1])), "mlp2")

    def pool(self, train: np.ndarray) -> tuple[jax.Array, BoolArray]:
        """Return tokens for masked modelling: unlabelled spectra, and labelled ones that a run trains on.

        Args:
            train: (S, n) True for the training stars of each run.

        Returns:
            Tokens (m + n, t, token_dim), and (S, m + n) True for those that a run may draw.

        Raises:
            DataError: there are fewer than two spectra.
        """
        flux, valid = self.labelled
        if len(self.target.unlabelled):
            others = self.unlabelled
            flux, valid = np.concatenate([others.flux, flux]), np.concatenate([others.valid, valid])
        count = len(flux) - train.shape[1]
        allowed = np.concatenate([np.ones((len(train), count), bool), train], axis=1)
        return objectives.tokens(self.model.config, flux, valid), allowed

    def outside_training(self) -> dict[str, str]:
        """Return the flags of labelled stars that are unlike the base model's training spectra, by id.

        Empty if the model does not know its training domain.
        """
        if self.model.ood is None:
            return {}
        flags = self.model.ood.flags(self.base.mean)
        pairs = zip(self.target.labelled.id.tolist(), flags.tolist(), strict=True)
        return {name: flag for name, flag in pairs if flag != Flag.GOOD}

    @functools.cached_property
    def _paired(self) -> tuple[Float32Array, ModelInput]:
        """Projected Gaia XP spectra (p, dim) of the unlabelled stars that have one, and their own spectra."""
        if self._whole is not None:
            return self._whole._paired
        xp = self.target.unlabelled_xp
        if xp is None or not has_pairs(self.target):
            raise DataError(f"{self.target.name}: {NO_PAIRS}")
        rows = np.flatnonzero(~xp.mask.all(axis=1))
        return self.model.embed(xp)[rows], ModelInput(self.unlabelled.flux[rows], self.unlabelled.valid[rows])

    def _hidden_at(self, entry: Entry) -> Tree:
        """Return the padded inputs of the labelled stars at an entry in the backbone."""
        if self._whole is None:
            return self._tower_inputs(_padded(self.labelled), entry)
        whole = self._whole.labelled_at(entry, (), {})[0]
        if len(self._rows) == len(self._whole.target.labelled):
            return whole
        rows = np.pad(self._rows, (0, padded(len(self._rows)) - len(self._rows)))
        return jax.tree.map(lambda leaf: leaf[rows], whole)

    def _tower_inputs(self, data: ModelInput, entry: Entry) -> Tree:
        return _tower_inputs(
            self.model.config, self.model.dtype, entry, {"lamost": self.model.params["lamost"]}, *data
        )

    def _adapted_backbone(self, factors: Tree) -> BackboneFeatures:
        """Run the backbone on the labelled stars, once for each tree of LoRA1's factors: (S, n, ...)."""
        if not factors:
            return BackboneFeatures(*(leaf[None] for leaf in self.base))
        leaves = jax.tree.leaves(factors)
        for known, features in self._adapted:
            if len(known) == len(leaves) and all(a is b for a, b in zip(known, leaves, strict=True)):
                return features
        features = self._run_backbone(factors, self.labelled)
        self._adapted.append((leaves, features))
        return features

    def _run_backbone(self, factors: Tree, data: ModelInput) -> BackboneFeatures:
        """Run the backbone with each seed's LoRA1; without it, use cached features of an earlier run."""
        run = functools.partial(forward.backbone, self.model, factors, data)
        return run() if factors else cached(run, self.model, data)

    def _first(self, features: BackboneFeatures) -> BackboneFeatures:
        return BackboneFeatures(*(leaf[0] for leaf in features))


def has_pairs(target: Target) -> bool:
    """Return whether an unlabelled star has a Gaia XP spectrum."""
    xp = target.unlabelled_xp
    return xp is not None and len(xp) > 0 and not bool(xp.mask.all())


def inputs_of_labels(model: Foundation, targets: Sequence[Target]) -> list[TargetInputs]:
    """Return the inputs of targets that are one survey with several labels, computed once for all stars."""
    first = targets[0]
    if len(targets) == 1:
        return [TargetInputs(model, first)]
    labelled, known = first.labelled, set(first.labelled.id.tolist())
    for target in targets[1:]:
        rows = [row for row, name in enumerate(target.labelled.id.tolist()) if name not in known]
        if rows:
            labelled = Spectra.concatenate([labelled, target.labelled[np.array(rows)]])
            known |= set(target.labelled.id[rows].tolist())
    unknown = np.full(len(labelled), np.nan)  # the inputs do not read the label
    stars = replace(first, labelled=labelled, truth=unknown, fe_h=unknown, weight=None, truth_error=None)
    whole = TargetInputs(model, stars)
    return [TargetInputs(model, target, whole) for target in targets]


def _rows_of(names: StrArray, among: StrArray) -> IntArray:
    row_of = {name: row for row, name in enumerate(among.tolist())}
    return np.array([row_of[name] for name in names.tolist()])


def _padded(tree: Rows, axis: int = 0) -> Rows:
    """Append rows of zeros to all leaves of a tree, along an axis, up to the size of a program."""

    def pad(leaf: AnyArray) -> AnyArray:
        more = padded(leaf.shape[axis]) - leaf.shape[axis]
        return np.pad(leaf, [(0, more if one == axis else 0) for one in range(leaf.ndim)])

    return cast(Rows, jax.tree.map(pad, tree))


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _tower_inputs(
    config: ModelConfig, dtype: str, entry: Entry, params: Tree, flux: jax.Array, valid: jax.Array
) -> Tree:
    return tower_inputs(config, dtype, params, objectives.tokens(config, flux, valid), entry)
