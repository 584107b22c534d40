"""A catalogue's labels under the ids of spectra: one row a spectrum, with what is known of its quality."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from astropy.table import Table

from specjax.catalogues import apogee, generic
from specjax.catalogues.sky import RADIUS, SkyMatch, match_catalogue
from specjax.errors import ConfigError, DataError
from specjax.preprocess import to_lamost
from specjax.spectra import Spectra
from specjax.surveys import read
from specjax.surveys.io.tables import write_table

_OF_THE_CATALOGUE = {"id": "label_id", "snr": "label_snr", "ra": "", "dec": ""}  # renamed, or left out


def label_files(
    spectra: Path,
    stars: Path,
    out: Path,
    *,
    cuts: Sequence[str] = tuple(apogee.CUTS),
    columns: str | None = None,
    where: Sequence[str] = (),
    radius: float = RADIUS,
    on: str | None = None,
    survey: str | None = None,
    say: Callable[[str], None] = print,
) -> Table:
    """`label_spectra` from files to a file.

    Args:
      spectra: what `surveys.read` takes.
      stars: APOGEE's allStar, or, with `columns`, any catalogue.
      out: the table to write; its suffix gives the format.
      cuts: of APOGEE, see `apogee.CUTS`.
      columns, where: of another catalogue, see `catalogue.parse_columns` and `catalogue.read_labels`.
      radius, on: see `label_spectra`.
      survey: a key of `surveys.SURVEYS`, where it is not to be recognised.
      say: takes what became of the rows, line by line.

    Raises:
      SpecjaxError: one line on what is wrong with an option, a file or the match.
    """
    if columns is None and where:
        raise ConfigError("conditions are for catalogues whose columns are given; APOGEE's allStar has cuts")
    if columns is None:
        labels = apogee.read_labels(stars, cuts=cuts)
    else:
        labels = generic.read_labels(stars, columns=generic.parse_columns(columns), where=where)
    say(f"{stars}: {_counts(labels)}")
    table = label_spectra(read(spectra, survey), labels, radius=radius, on=on)
    meta = table.meta
    say(
        f"{meta['labelled']} of {meta['spectra']} spectra have a label, {meta['flagged']} of them are "
        f"flagged; {meta['duplicates']} more are of the same stars and stay without"
    )
    write_table(out, {name: table[name] for name in table.colnames}, meta)
    return table


def label_spectra(spectra: Spectra, labels: Table, *, radius: float = RADIUS, on: str | None = None) -> Table:
    """A row for each spectrum: its labels, NaN where the catalogue has none, and what a split needs to know.

    Args:
      spectra: n spectra with ids that are unique and, to be matched on the sky, meta ra and dec in degrees.
      labels: as `apogee.read_labels` and `catalogue.read_labels` give it.
      radius: arcsec; see `sky.match`.
      on: instead of the sky, the catalogue's column that holds the spectra's ids, e.g. gaia_source_id.

    Returns:
      Table with id; ra, dec, snr of the spectrum (NaN where unknown); the catalogue's labels and errors;
      label_id, label_snr and gaia_source_id of the catalogue's star; separation in arcsec; duplicate_of: the
      id of the spectrum that got the label of the same star, for those that were beaten by a nearer one;
      flag: why `preprocess.to_lamost` says that the spectrum must not be trusted, or "". Its meta counts
      spectra, labelled, duplicates, flagged (of the labelled), and keeps the counts of the catalogue.

    Raises:
      DataError: ids that are not unique, no positions to match, no column `on`, or not one star in common.
    """
    names, times = np.unique(spectra.id, return_counts=True)
    if (times > 1).any():
        raise DataError(
            f"{int((times > 1).sum())} ids occur more than once among the spectra, the first "
            f"{names[times > 1][0]}: labels cannot be told apart"
        )
    found = match_catalogue(spectra, labels, radius) if on is None else _match_ids(spectra, labels, on)
    if not len(found.left):
        where = f"within {radius:g} arcsec"
        if on is not None:
            where = f"by {on} ({spectra.id[0]} and so on, to {labels[on][0]} and so on)"
        raise DataError(
            f"none of {len(spectra)} spectra is matched {where} to one of {len(labels)} labelled stars"
        )
    table = Table({"id": spectra.id})
    for name, unit in (("ra", "deg"), ("dec", "deg"), ("snr", None)):
        values = spectra.meta.get(name, np.full(len(spectra), np.nan))
        table[name] = np.asarray(values, dtype=np.float64)
        table[name].unit = unit
    for name in labels.colnames:
        if new := _OF_THE_CATALOGUE.get(name, name):
            table[new] = _spread(labels[name], found, len(spectra))
            table[new].unit = labels[name].unit
    table["separation"] = np.full(len(spectra), np.nan)
    table["separation"][found.left] = found.separation
    table["separation"].unit = "arcsec"
    owner = dict(zip(found.right.tolist(), spectra.id[found.left].tolist(), strict=True))
    duplicate_of = np.full(len(spectra), "", dtype=spectra.id.dtype)
    for left, right in found.duplicates.tolist():
        duplicate_of[left] = owner[right]
    table["duplicate_of"] = duplicate_of
    flag = to_lamost(spectra).meta["flag"]
    table["flag"] = flag
    table.meta.update({f"catalogue_{key}": value for key, value in labels.meta.items()})
    table.meta.update(
        spectra=len(spectra),
        labelled=len(found.left),
        duplicates=len(found.duplicates),
        flagged=int((flag[found.left] != "").sum()),
    )
    return table


def _counts(labels: Table) -> str:
    """What became of a catalogue's rows, for people."""
    lost = {key: count for key, count in labels.meta.items() if key not in ("rows", "kept") and count}
    why = ", ".join(f"{count} {key.removeprefix('cut_')}" for key, count in lost.items())
    return f"{labels.meta['kept']} of {labels.meta['rows']} rows kept" + (
        f" (left out: {why})" if why else ""
    )


def _spread(column: object, found: SkyMatch, count: int) -> np.ndarray:
    """The catalogue's values at the rows of the spectra; NaN or "" elsewhere."""
    values = np.asarray(column)
    nothing = np.array("", dtype=values.dtype) if values.dtype.kind == "U" else np.array(np.nan)
    result = np.full(count, nothing)
    result[found.left] = values[found.right]
    return result


def _match_ids(spectra: Spectra, labels: Table, on: str) -> SkyMatch:
    """Pairs whose id is the same text; the catalogue's first row of each."""
    if on not in labels.colnames:
        raise DataError(f"the labels have no column {on}: they have {', '.join(labels.colnames)}")
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
