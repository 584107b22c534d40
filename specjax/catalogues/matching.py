"""Label spectra from a catalogue: one row per spectrum, with its labels and quality flag."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from astropy.table import Column, Table

from specjax import units
from specjax.catalogues import apogee, generic
from specjax.catalogues.sky import RADIUS, SkyMatch, match_catalogue
from specjax.errors import ConfigError, DataError
from specjax.flags import Flag
from specjax.overwrite import check_replaceable
from specjax.preprocess import to_lamost
from specjax.progress import Say, silent
from specjax.spectra import Spectra
from specjax.surveys import read
from specjax.surveys.io.tables import write_table, written_format
from specjax.typing import AnyArray, StrArray

_RENAMED = {"id": "label_id", "snr": "label_snr"}  # columns of the catalogue that the spectra have too
_DROPPED = ("ra", "dec")  # in favour of those of the spectra


def label_files(
    spectra: Path,
    catalogue: Path,
    out: Path,
    *,
    cuts: Sequence[str] = tuple(apogee.CUTS),
    columns: str | None = None,
    where: Sequence[str] = (),
    radius: float = RADIUS,
    on: str | None = None,
    survey: str | None = None,
    say: Say = silent,
) -> Table:
    """Label spectra, as `label_spectra`, from files to a file.

    Args:
        spectra: a path that `surveys.read` takes.
        catalogue: APOGEE's allStar or, with `columns`, any catalogue.
        out: the table to write; its suffix gives the format.
        cuts: quality cuts on APOGEE, see `apogee.CUTS`.
        columns, where: columns of and conditions on another catalogue, see `generic`.
        radius, on: see `label_spectra`.
        survey: a key of `surveys.SURVEYS`; recognised from the files if None.
        say: takes lines on the numbers of rows.

    Raises:
        SpecjaxError: an option or a file is invalid, or nothing matches.
    """
    if columns is None and where:
        raise ConfigError("conditions need the columns of a catalogue; APOGEE's allStar has cuts instead")
    written_format(out)
    check_replaceable(out)
    if columns is None:
        labels = apogee.read_labels(catalogue, cuts=cuts)
    else:
        labels = generic.read_labels(catalogue, columns=generic.parse_columns(columns), where=where)
    say(f"{catalogue}: {_counts(labels)}")
    table = label_spectra(read(spectra, survey), labels, radius=radius, on=on)
    meta = table.meta
    say(
        f"{meta['labelled']} of {meta['spectra']} spectra have a label, {meta['flagged']} of them are "
        f"flagged; {meta['duplicates']} more are of the same stars and stay unlabelled"
    )
    write_table(out, {name: table[name] for name in table.colnames}, meta)
    return table


def label_spectra(spectra: Spectra, labels: Table, *, radius: float = RADIUS, on: str | None = None) -> Table:
    """Return one row per spectrum with its labels, NaN where the catalogue has none, and what a split needs.

    Args:
        spectra: n spectra with unique ids and, to match on the sky, meta ra and dec in degrees.
        labels: a table from `apogee.read_labels` or `generic.read_labels`.
        radius: arcsec; see `sky.match`.
        on: match ids instead of positions; the column of the catalogue with the spectra's ids, for example
            gaia_source_id.

    Returns:
        Table with id; ra, dec, snr of the spectrum (NaN where unknown); the catalogue's labels and errors;
        label_id, label_snr and gaia_source_id of the catalogue's star; separation in arcsec; duplicate_of,
        the id of the nearer spectrum that got the label of the same star; flag, the quality flag of
        `preprocess.to_lamost`. Its meta has the numbers spectra, labelled, duplicates and flagged (of the
        labelled), and those of the catalogue.

    Raises:
        DataError: ids are not unique, there are no positions or no column `on`, or no star is common.
    """
    names, times = np.unique(spectra.id, return_counts=True)
    if (times > 1).any():
        raise DataError(
            f"{int((times > 1).sum())} ids occur more than once among the spectra, the first "
            f"{names[times > 1][0]}: their labels would be ambiguous"
        )
    found = match_catalogue(spectra, labels, radius) if on is None else _match_ids(spectra, labels, on)
    if not len(found.left):
        how = f"within {radius:g} arcsec"
        if on is not None:
            how = f"by {on} (the first are {spectra.id[0]} and {labels[on][0]})"
        raise DataError(f"none of {len(spectra)} spectra matches one of {len(labels)} labelled stars {how}")
    table = _table(spectra, labels, found)
    table.meta.update({f"catalogue_{key}": value for key, value in labels.meta.items()})
    table.meta.update(
        spectra=len(spectra),
        labelled=len(found.left),
        duplicates=len(found.duplicates),
        flagged=int((table["flag"][found.left] != Flag.GOOD).sum()),
    )
    return table


def _table(spectra: Spectra, labels: Table, found: SkyMatch) -> Table:
    """Make the columns of `label_spectra`."""
    table = Table({"id": spectra.id})
    unknown = np.full(len(spectra), np.nan)
    for name in ("ra", "dec", "snr"):
        values = np.asarray(spectra.meta.get(name, unknown), dtype=np.float64)
        table[name] = Column(values, unit=units.COLUMNS.get(name))
    for name in labels.colnames:
        if name not in _DROPPED:
            values = _at_spectra(labels[name], found, len(spectra))
            table[_RENAMED.get(name, name)] = Column(values, unit=labels[name].unit)
    separation = unknown.copy()
    separation[found.left] = found.separation
    table["separation"] = Column(separation, unit="arcsec")
    table["duplicate_of"] = _duplicate_of(spectra, found)
    table["flag"] = to_lamost(spectra).meta["flag"]
    return table


def _at_spectra(column: object, found: SkyMatch, count: int) -> AnyArray:
    """Return the catalogue's values in the order of the spectra; NaN or "" for unmatched ones."""
    values = np.asarray(column)
    missing = np.array("", dtype=values.dtype) if values.dtype.kind == "U" else np.array(np.nan)
    result = np.full(count, missing)
    result[found.left] = values[found.right]
    return result


def _duplicate_of(spectra: Spectra, found: SkyMatch) -> StrArray:
    """Return the id of the spectrum that got the label of the same star; "" for others."""
    owner = dict(zip(found.right.tolist(), spectra.id[found.left].tolist(), strict=True))
    result = np.full(len(spectra), "", dtype=spectra.id.dtype)
    for left, right in found.duplicates.tolist():
        result[left] = owner[right]
    return result


def _counts(labels: Table) -> str:
    """Summarise for people how many rows of a catalogue were kept."""
    rejected = {key: count for key, count in labels.meta.items() if key not in ("rows", "kept") and count}
    why = ", ".join(f"{count} {key.removeprefix('cut_')}" for key, count in rejected.items())
    kept = f"{labels.meta['kept']} of {labels.meta['rows']} rows kept"
    return f"{kept} (left out: {why})" if why else kept


def _match_ids(spectra: Spectra, labels: Table, on: str) -> SkyMatch:
    """Pair spectra with the catalogue's first row of the same id."""
    if on not in labels.colnames:
        raise DataError(f"the labels have no column {on}; they have {', '.join(labels.colnames)}")
    row_of: dict[str, int] = {}
    for row, name in enumerate(np.char.strip(np.asarray(labels[on]).astype(np.str_)).tolist()):
        if name:
            row_of.setdefault(name, row)
    pairs = [(left, row_of[name]) for left, name in enumerate(spectra.id.tolist()) if name in row_of]
    left, right = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    return SkyMatch(
        left=left,
        right=right,
        separation=np.full(len(left), np.nan),
        duplicates=np.zeros((0, 2), dtype=np.int64),
    )
