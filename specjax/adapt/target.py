"""A target survey, ready for adaptation: spectra on the model grid, labels, the unlabelled rest, and splits.

NumPy only. What was left out and why is kept, so that a run can say it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from specjax.errors import DataError
from specjax.spectra import Spectra
from specjax.typing import AnyArray, BoolArray, FloatArray, IntArray, StrArray


@dataclass(frozen=True, kw_only=True, eq=False)
class Grid:
    """n spectra on the LAMOST grid, and where there are any, their Gaia XP partners.

    Attributes:
        flux: (n, 1462) continuum-normalised.
        ivar: (n, 1462), or None where the survey gives none.
        mask: (n, 1462), True = do not use.
        id: (n,) strings.
        xp_flux, xp_valid: (n, 343) or None.
    """

    flux: FloatArray
    ivar: FloatArray | None
    mask: BoolArray
    id: StrArray
    xp_flux: FloatArray | None = None
    xp_valid: BoolArray | None = None

    @classmethod
    def of(cls, lamost: Spectra, xp: Spectra | None = None) -> "Grid":
        """Take what `preprocess.to_lamost` and `to_gaia_xp` (same rows) gave."""
        return cls(
            flux=lamost.flux,
            ivar=lamost.ivar if lamost.has_ivar else None,
            mask=lamost.mask,
            id=lamost.id,
            xp_flux=None if xp is None else xp.flux,
            xp_valid=None if xp is None else ~xp.mask,
        )

    def __len__(self) -> int:
        return len(self.id)

    def __getitem__(self, rows: AnyArray) -> "Grid":
        parts: dict[str, Any] = {
            name: None if value is None else value[rows] for name, value in self.__dict__.items()
        }
        return replace(self, **parts)


@dataclass(frozen=True, kw_only=True, eq=False)
class Target:
    """What an adaptation needs of a survey.

    Attributes:
        name: of the survey.
        labelled: the n spectra that have the label.
        truth: (n,) the label, in physical units.
        label: its name, one of the model's.
        unlabelled: spectra for LoRA1 and LoRA3, disjoint from the labelled ones; may be empty.
        refused: {id: flag} of the spectra that cannot be labelled ones; some of them serve unlabelled.
        fe_h: (n,) literature [Fe/H], which sorts stars into the table's subsets; NaN where unknown.
        fwhm: the resolution that `preprocess.to_lamost` was told, Angstrom; None where it was not.
        preparation: all that it did, as `Spectra.prepared` has it; what predicts later does the same.
    """

    name: str
    labelled: Grid
    truth: FloatArray
    label: str
    unlabelled: Grid
    fe_h: FloatArray
    refused: dict[str, str] = field(default_factory=dict)
    fwhm: float | None = None
    preparation: Mapping[str, Any] = field(default_factory=dict)


def make_target(
    name: str,
    lamost: Spectra,
    truth: FloatArray,
    *,
    label: str,
    fe_h: FloatArray | None = None,
    usable: BoolArray | None = None,
    xp: Spectra | None = None,
    fwhm: float | None = None,
) -> Target:
    """Sort the rows of a survey into labelled, unlabelled and refused.

    Args:
        lamost: n spectra from `preprocess.to_lamost`, with their flags.
        truth: (n,) the label, NaN where unknown.
        label: its name.
        fe_h: (n,) [Fe/H] for the subsets; `truth` itself where the label is fe_h.
        usable: (n,) rows that may be labelled ones; the others stay unlabelled.
        xp: n spectra from `preprocess.to_gaia_xp`.
        fwhm: what `to_lamost` was told.

    Raises:
        DataError: no row has both a label and a usable spectrum.
    """
    flag = lamost.meta["flag"]
    has_label = np.isfinite(truth) & (np.ones(len(truth), bool) if usable is None else usable)
    chosen = np.flatnonzero(has_label & (flag == ""))
    rest = np.flatnonzero(~has_label | (flag == "masked_fraction"))
    rest = rest[np.isin(flag[rest], ("", "masked_fraction"))]
    if not chosen.size:
        raise DataError(f"{name}: none of {len(lamost)} spectra has both {label} and a usable spectrum")
    grid = Grid.of(lamost, xp)
    if fe_h is None:
        fe_h = truth if label == "fe_h" else np.full(len(truth), np.nan)
    return Target(
        name=name,
        labelled=grid[chosen],
        truth=np.asarray(truth, np.float64)[chosen],
        label=label,
        unlabelled=grid[rest],
        fe_h=np.asarray(fe_h, np.float64)[chosen],
        refused={str(lamost.id[row]): str(flag[row]) for row in np.flatnonzero(flag != "")},
        fwhm=fwhm,
        preparation=dict(lamost.prepared or {}),
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class Splits:
    """Rows of the labelled spectra for S seeds: train (S, a), validate (S, b), test (S, c).

    seeds (S,) says which they are, 0 to S - 1 where it is not given: it is what random numbers follow from.
    """

    train: IntArray
    validate: IntArray
    test: IntArray
    seeds: IntArray | None = None

    def __post_init__(self) -> None:
        if self.seeds is None:
            object.__setattr__(self, "seeds", np.arange(len(self.train)))

    def __len__(self) -> int:
        return len(self.train)

    def __getitem__(self, seeds: slice) -> "Splits":
        return replace(self, **{name: rows[seeds] for name, rows in self.__dict__.items()})


def draw_splits(n: int, *, seeds: int, train: int, validate: int) -> Splits:
    """Split n stars at random, once a seed; the split of a seed does not depend on how many there are.

    Raises:
        DataError: no star is left to test on, or too few to train on; or numbers that mean nothing.
    """
    if seeds < 1 or validate < 0:
        raise DataError(f"{seeds} seeds with {validate} to validate cannot be drawn")
    if train < 10:
        raise DataError(f"{train} training stars are too few: at least 10 are needed")
    if train + validate >= n:
        raise DataError(
            f"{n} labelled stars cannot give {train} to train, {validate} to validate and some to test"
        )
    order = np.stack([np.random.default_rng([seed, n]).permutation(n) for seed in range(seeds)])
    cuts = np.split(order, [train, train + validate], axis=1)
    return Splits(train=cuts[0], validate=cuts[1], test=cuts[2])
