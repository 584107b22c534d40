"""The target survey of an adaptation: labelled spectra on the model grid, and the unlabelled rest."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from specjax.errors import DataError
from specjax.flags import USABLE, Flag
from specjax.spectra import Spectra
from specjax.typing import BoolArray, FloatArray, IntArray


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Target:
    """A survey to adapt to.

    Attributes:
        name: of the survey.
        labelled: the n spectra on the LAMOST grid that have the label and pass the quality checks.
        truth: (n,) the label, in physical units.
        label: its name, one of the model's.
        unlabelled: m spectra on the LAMOST grid for LoRA1 and LoRA3, none of them labelled; m may be 0.
        unlabelled_xp: their Gaia XP spectra in the same order, wholly masked where there is none; None if no
            star has one.
        fe_h: (n,) literature [Fe/H], which divides the stars into the table's subsets; NaN where unknown.
        refused: id -> flag of the spectra that may not be labelled ones; some of them are unlabelled ones.
        fwhm: the spectral resolution that `preprocess.to_lamost` was given, in Angstrom; None if none was.
        weight: (n,) weight of each star in the loss on the labels and in the selection, such as 1/(s^2 +
            error^2) for labels with an error and a model with a scatter s; None weights all stars equally.
        truth_error: (n,) errors of the label, 0 where unknown; None if all are. They do not set the weights.
        wavelength: "medium" and "unit" of the wavelengths of the files; the unit is None if a file or a
            survey declares it, or it is Angstrom.

    Raises:
        DataError: weights that are not one positive number per star.
    """

    name: str
    labelled: Spectra
    truth: FloatArray
    label: str
    unlabelled: Spectra
    unlabelled_xp: Spectra | None = None
    fe_h: FloatArray
    refused: dict[str, str] = field(default_factory=dict)
    fwhm: float | None = None
    weight: FloatArray | None = None
    truth_error: FloatArray | None = None
    wavelength: Mapping[str, str | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.weight is not None:
            weight = np.asarray(self.weight)
            if weight.shape != self.truth.shape or not (np.isfinite(weight) & (weight > 0)).all():
                raise DataError(f"{self.name}: weights must be one positive number per labelled star")

    def error_of(self, rows: IntArray) -> FloatArray | None:
        """Return the errors of the labels of these stars, None if they are unknown."""
        return None if self.truth_error is None else self.truth_error[rows]

    def __repr__(self) -> str:
        return (
            f"<Target {self.name!r}: {len(self.labelled)} spectra with {self.label},"
            f" {len(self.unlabelled)} without>"
        )

    @property
    def preparation(self) -> Mapping[str, Any]:
        """How the spectra were preprocessed (`Spectra.prepared`), as spectra to predict must be."""
        return dict(self.labelled.prepared or {})


def make_targets(
    name: str,
    lamost: Spectra,
    truths: Mapping[str, FloatArray],
    *,
    usable: BoolArray | None = None,
    errors: Mapping[str, FloatArray] | None = None,
    **options: Any,
) -> list[Target]:
    """Make one target per label, all with the same unlabelled spectra: those without any of the labels.

    Args:
        name: of the survey.
        lamost: n spectra from `preprocess.to_lamost`, with their flags.
        truths: {label: (n,) values}, NaN where unknown.
        usable: (n,) spectra that may be labelled ones; all by default.
        errors: {label: (n,)} errors of labels, see `make_target`.
        **options: further keywords of `make_target`.

    Raises:
        DataError: for some label, no spectrum is usable and has it.
    """
    spare = ~np.asarray(np.isfinite(np.stack(list(truths.values()))).any(axis=0))
    if usable is not None:
        spare |= ~usable
    targets = [
        make_target(
            name,
            lamost,
            truth,
            label=label,
            usable=usable,
            spare=spare,
            error=(errors or {}).get(label),
            **options,
        )
        for label, truth in truths.items()
    ]
    one, its_xp = targets[0].unlabelled, targets[0].unlabelled_xp  # one copy in memory
    return [replace(target, unlabelled=one, unlabelled_xp=its_xp) for target in targets]


def make_target(
    name: str,
    lamost: Spectra,
    truth: FloatArray,
    *,
    label: str,
    fe_h: FloatArray | None = None,
    usable: BoolArray | None = None,
    spare: BoolArray | None = None,
    xp: Spectra | None = None,
    fwhm: float | None = None,
    error: FloatArray | None = None,
) -> Target:
    """Divide the spectra of a survey into labelled, unlabelled and refused ones.

    Args:
        name: of the survey.
        lamost: n spectra from `preprocess.to_lamost`, with their flags.
        truth: (n,) the label, NaN where unknown.
        label: its name.
        fe_h: (n,) [Fe/H] for the subsets; by default `truth` if the label is fe_h.
        usable: (n,) spectra that may be labelled ones; all by default.
        spare: (n,) spectra that may be unlabelled ones; by default, all that are not labelled ones.
        xp: n Gaia XP spectra from `preprocess.to_gaia_xp`.
        fwhm: the resolution that `to_lamost` was given.
        error: (n,) errors of the label; not finite or negative where unknown.

    Raises:
        DataError: no spectrum is usable and has a label.
    """
    flag = lamost.meta["flag"]
    has_label = np.isfinite(truth) & (np.ones(len(truth), bool) if usable is None else usable)
    labelled = np.flatnonzero(has_label & (flag == Flag.GOOD))
    spare = ~has_label if spare is None else spare
    rest = np.flatnonzero((spare & np.isin(flag, USABLE)) | (flag == Flag.MASKED_FRACTION))
    if not labelled.size:
        raise DataError(f"{name}: none of {len(lamost)} spectra has both {label} and a usable spectrum")
    if fe_h is None:
        fe_h = truth if label == "fe_h" else np.full(len(truth), np.nan)
    return Target(
        name=name,
        labelled=lamost[labelled],
        truth=np.asarray(truth, np.float64)[labelled],
        label=label,
        unlabelled=lamost[rest],
        unlabelled_xp=None if xp is None else xp[rest],
        fe_h=np.asarray(fe_h, np.float64)[labelled],
        refused={str(lamost.id[row]): str(flag[row]) for row in np.flatnonzero(flag != Flag.GOOD)},
        fwhm=fwhm,
        truth_error=_known_errors(error, labelled),
    )


def _known_errors(error: FloatArray | None, rows: IntArray) -> FloatArray | None:
    """Return the errors of the labels of these spectra, 0 where unknown; None if all are."""
    if error is None:
        return None
    own = np.asarray(error, np.float64)[rows]
    known = np.isfinite(own) & (own > 0)
    return np.where(known, own, 0.0) if known.any() else None
