"""Stars of a table of labels that an adaptation does not use, and why."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from astropy.table import Table

from specjax import distributed
from specjax.adapt.roles import Roles
from specjax.adapt.splits import default_sizes
from specjax.catalogues.labels import read_labels
from specjax.errors import DataError
from specjax.flags import Flag, count_flags
from specjax.spectra import Spectra
from specjax.surveys.io.tables import write_table
from specjax.typing import AnyArray, FloatArray, StrArray
from specjax.units import LABELS, RANGES

FILE = "left_out.ecsv"
"""The table in a run folder; of a run that is refused, a table beside it is named FOLDER.left_out.ecsv."""

MOST_ROWS = 10_000
"""Stars of a table up to which all that are left out are listed."""

NO_SPECTRUM, NO_VALUE, OUT_OF_RANGE, NO_ROLE = (
    "without a spectrum",
    "without a value",
    "out of range",
    "not in the splits",
)
_DTYPE = "<U40"


def within_range(label: str, values: FloatArray) -> FloatArray:
    """Return labels (n,) with NaN for those that no star can have."""
    low, high = RANGES.get(label, (-np.inf, np.inf))
    with np.errstate(invalid="ignore"):
        return np.where((values >= low) & (values <= high), values, np.nan)


@dataclass(frozen=True, kw_only=True, eq=False)
class LabelledStars:
    """The n stars of a table of labels, and why they are not used.

    Attributes:
        path: the table.
        id: (n,) strings.
        values: {label: (n,)} as in the table, NaN where unknown.
        reason: {label: (n,)} why a star is not used; "" for one that is.
    """

    path: Path
    id: StrArray
    values: Mapping[str, FloatArray]
    reason: Mapping[str, StrArray]

    @classmethod
    def read(cls, path: Path, labels: Sequence[str], lamost: Spectra, roles: Roles | None) -> "LabelledStars":
        """Read a table of labels.

        Args:
            path: the table.
            labels: those to adapt to.
            lamost: the spectra on the model grid, with their flags.
            roles: the splits of the table, if it has any.

        Raises:
            DataError: see `catalogues.labels.read_labels`.
        """
        table = read_labels(path, labels)
        ids = np.asarray(table["id"])
        values = {label: np.asarray(table[label], np.float64) for label in labels}
        flag_of = dict(zip(lamost.id.tolist(), lamost.meta["flag"].tolist(), strict=True))
        shared = np.array([flag_of.get(name, NO_SPECTRUM) for name in ids.tolist()], _DTYPE)
        shared[shared == Flag.GOOD] = ""
        if roles is not None:
            shared = np.where((shared == "") & ~roles.labelled(ids), NO_ROLE, shared)
        reason = {label: _reasons(label, shared, column) for label, column in values.items()}
        return cls(path=path, id=ids, values=values, reason=reason)

    def check(self, out: Path, train: int | None, validate: int | None) -> None:
        """Check that enough stars are used for every label; otherwise the table of those left out is written.

        Args:
            out: the run folder, beside which the table is written.
            train: training stars; by default, see `splits.default_sizes`.
            validate: validation stars, likewise.

        Raises:
            DataError: too few stars are used, or most values are out of range.
        """
        for label, reason in self.reason.items():
            values = self.values[label]
            odd = (reason == OUT_OF_RANGE).sum()
            if odd > np.isfinite(values).sum() / 2:
                self._refuse(out, f"{label} of {odd} of {len(reason)} stars is {_range(label, values)}")
            count = int((reason == "").sum())
            sizes = default_sizes(count, train, validate)
            if sum(sizes) >= count:
                self._refuse(
                    out,
                    f"{count} labelled stars are too few for {sizes[0]} training, {sizes[1]} validation and"
                    f" at least one test star with {label}{self.summary(label)}"
                    + ("; lower --train or --validate" if (train, validate) != (None, None) else ""),
                )

    def summary(self, label: str) -> str:
        """Say how many stars are left out for a label, and why; "" if none are."""
        left_out = [reason for reason in self.reason[label].tolist() if reason]
        if not left_out:
            return ""
        text = f"; left out are {len(left_out)} of {len(self.id)} stars: {count_flags(left_out)}"
        odd = np.flatnonzero(self.reason[label] == OUT_OF_RANGE)
        if not odd.size:
            return text
        return f"{text}; the first that is out of range is {self.id[odd[0]]} ({self.values[label][odd[0]]:g})"

    def columns(self) -> dict[str, AnyArray]:
        """Return the table of what is left out: one row per star and label.

        In a catalogue of many stars, those without a spectrum or without a value are only counted.
        """
        common = [NO_SPECTRUM, NO_VALUE] if len(self.id) > MOST_ROWS else []
        parts = []
        for label, reason in self.reason.items():
            rows = np.flatnonzero((reason != "") & ~np.isin(reason, common))
            parts.append((self.id[rows], np.full(len(rows), label), self.values[label][rows], reason[rows]))
        columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
        return dict(zip(("id", "label", "value", "reason"), columns, strict=True))

    def files(self) -> dict[str, str]:
        """Return the table as a file of the run folder, if anything is left out."""
        columns = self.columns()
        if not len(columns["id"]):
            return {}
        text = io.StringIO()
        Table(columns).write(text, format="ascii.ecsv")
        return {FILE: text.getvalue()}

    def _refuse(self, out: Path, why: str) -> None:
        beside, where = beside_folder(out), ""
        columns = self.columns()
        if len(columns["id"]):
            if distributed.is_main():
                write_table(beside, columns)
            where = f"; {beside} lists them"
        raise DataError(f"{self.path}: {why}{where}")


def beside_folder(out: Path) -> Path:
    """Return the name of the table beside a run folder."""
    return out.with_name(f"{out.name}.{FILE}")


def _reasons(label: str, shared: StrArray, values: FloatArray) -> StrArray:
    """Return why each star (n,) is not used for a label; `shared` are the reasons for all labels."""
    unknown = np.isnan(values)
    odd = ~unknown & np.isnan(within_range(label, values))
    reason = np.where(odd, OUT_OF_RANGE, np.where(unknown, NO_VALUE, shared))
    return reason.astype(_DTYPE)


def _range(label: str, values: FloatArray) -> str:
    """State the range of a label and of its values, as the end of a sentence."""
    low, high = RANGES[label]
    unit = LABELS.get(label, "")
    known = values[np.isfinite(values)]
    return (
        f"outside {low:g} to {high:g} {unit}, as the values run from {known.min():g} to {known.max():g}: they"
        " may be in another unit, or another column is meant"
    )
