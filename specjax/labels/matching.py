"""A catalogue's labels under the ids of spectra: one row a spectrum, with what is known of its quality."""

from __future__ import annotations

import numpy as np
from astropy.table import Table

from specjax.errors import DataError
from specjax.preprocess import to_lamost
from specjax.spectra import Spectra
from specjax.surveys.sky import RADIUS, SkyMatch, match_catalogue

_OF_THE_CATALOGUE = {"id": "label_id", "snr": "label_snr", "ra": "", "dec": ""}  # renamed, or left out


def label_spectra(
    spectra: Spectra, catalogue: Table, *, radius: float = RADIUS, on: str | None = None
) -> Table:
    """A row for each spectrum: its labels, NaN where the catalogue has none, and what a split needs to know.

    Args:
      spectra: n spectra with ids that are unique and, to be matched on the sky, meta ra and dec in degrees.
      catalogue: as `apogee.read_labels` and `catalogue.read_labels` give it.
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
    found = match_catalogue(spectra, catalogue, radius) if on is None else _match_ids(spectra, catalogue, on)
    if not len(found.left):
        where = f"within {radius:g} arcsec" if on is None else f"by {on}"
        raise DataError(
            f"none of {len(spectra)} spectra is matched {where} to one of {len(catalogue)} labelled stars"
        )
    table = Table({"id": spectra.id})
    for name, unit in (("ra", "deg"), ("dec", "deg"), ("snr", None)):
        values = spectra.meta.get(name, np.full(len(spectra), np.nan))
        table[name] = np.asarray(values, dtype=np.float64)
        table[name].unit = unit
    for name in catalogue.colnames:
        if new := _OF_THE_CATALOGUE.get(name, name):
            table[new] = _spread(catalogue[name], found, len(spectra))
            table[new].unit = catalogue[name].unit
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
    table.meta.update({f"catalogue_{key}": value for key, value in catalogue.meta.items()})
    table.meta.update(
        spectra=len(spectra),
        labelled=len(found.left),
        duplicates=len(found.duplicates),
        flagged=int((flag[found.left] != "").sum()),
    )
    return table


def _spread(column: object, found: SkyMatch, count: int) -> np.ndarray:
    """The catalogue's values at the rows of the spectra; NaN or "" elsewhere."""
    values = np.asarray(column)
    nothing = np.array("", dtype=values.dtype) if values.dtype.kind == "U" else np.array(np.nan)
    result = np.full(count, nothing)
    result[found.left] = values[found.right]
    return result


def _match_ids(spectra: Spectra, catalogue: Table, on: str) -> SkyMatch:
    """Pairs whose id is the same text; the catalogue's first row of each."""
    if on not in catalogue.colnames:
        raise DataError(f"the labels have no column {on}: they have {', '.join(catalogue.colnames)}")
    row_of: dict[str, int] = {}
    for row, name in enumerate(np.char.strip(np.asarray(catalogue[on]).astype(np.str_)).tolist()):
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
