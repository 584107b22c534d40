"""Classifications of DESI targets by redrock: star, galaxy or quasar, and redshift."""

from pathlib import Path

import numpy as np

from specjax.errors import DataError
from specjax.spectra import Spectra
from specjax.surveys.io.fits import open_fits
from specjax.typing import AnyArray, IntArray

PREFIXES = ("redrock", "zbest")
"""Prefixes of its files, in place of "coadd" in the name of the coadd."""

_NEEDED = ("TARGETID", "SPECTYPE", "Z", "ZWARN")
_COLUMNS = {
    "spectype": "SPECTYPE",
    "subtype": "SUBTYPE",
    "redshift": "Z",
    "redshift_err": "ZERR",
    "zwarn": "ZWARN",
    "ra": "TARGET_RA",
    "dec": "TARGET_DEC",
}


def unknown(count: int) -> dict[str, AnyArray]:
    """Return the meta columns of `count` DESI targets, all unknown."""
    return {
        **{key: np.full(count, np.nan) for key in ("ra", "dec", "snr", "redshift", "redshift_err")},
        **{key: np.full(count, "", dtype="<U20") for key in ("spectype", "subtype")},
        "zwarn": np.full(count, -1, dtype=np.int64),
        "milky_way": np.zeros(count, dtype=bool),
    }


def classify(coadd: Path, ids: IntArray, meta: dict[str, AnyArray]) -> None:
    """Fill meta columns from the redrock file beside a coadd, by TARGETID; do nothing without such a file.

    Args:
        coadd: the coadd's file, coadd-NAME.fits; redrock's is redrock-NAME.fits or zbest-NAME.fits.
        ids: (n,) TARGETIDs.
        meta: columns as returned by `unknown`; changed in place.

    Raises:
        DataError: the redrock file is damaged or lacks a column.
    """
    beside = [coadd.with_name(coadd.name.replace("coadd", prefix, 1)) for prefix in PREFIXES]
    found = next((file for file in beside if file != coadd and file.is_file()), None)
    if found is None:
        return
    with open_fits(found, "a redrock file", odd_cards=True) as hdus:
        data = hdus[1].data
        missing = [name for name in _NEEDED if name not in data.names]
        if missing:
            raise DataError(f"{found} is not a redrock file: it has no column {', '.join(missing)}")
        row_of = {int(target): row for row, target in enumerate(data["TARGETID"])}
        rows = np.array([row_of.get(int(target), -1) for target in ids], dtype=int)
        known = rows >= 0
        for key, name in _COLUMNS.items():
            if name in data.names:
                meta[key][known] = np.asarray(data[name])[rows[known]]


def select_stars(spectra: Spectra) -> Spectra:
    """Select stars: SPECTYPE is STAR and ZWARN is 0, or, without a classification, targeted as a star.

    Raises:
        DataError: there is no star.
    """
    spectype, zwarn = spectra.meta["spectype"], spectra.meta["zwarn"]
    chosen = np.where(spectype == "", spectra.meta["milky_way"], (spectype == "STAR") & (zwarn == 0))
    if not chosen.any():
        raise DataError(
            f"none of {len(spectra)} DESI spectra is of a star; redrock-*.fits or zbest-*.fits beside the "
            "coadd would identify the stars"
        )
    return spectra[chosen.astype(bool)]
