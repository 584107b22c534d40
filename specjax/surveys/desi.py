"""Reader of DESI spectra: 3600-9824 A in vacuum, barycentric, 0.8 A pixels, 1e-17 erg/s/cm2/A.

Files have two layouts: coadds as published by DESI, with separate HDUs for each arm (B, R, Z), and tables of
flux alone with one column per target.
"""

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from astropy.io import fits

from specjax.errors import DataError
from specjax.spectra import Spectra
from specjax.surveys import redrock
from specjax.surveys.io.fits import open_fits
from specjax.surveys.io.many import read_folder, report_left_out
from specjax.surveys.io.sniff import FitsContents, fits_files, look
from specjax.surveys.io.snr import best_of_each, median_snr
from specjax.typing import AnyArray, BoolArray, FloatArray, IntArray

WAVELENGTH: FloatArray = np.round(3600.0 + 0.8 * np.arange(7781, dtype=np.float64), 6)
"""(7781,) vacuum Angstrom: the common grid of all arms."""

_KIND = "a DESI coadd"
_TARGET = re.compile(r"TARGET(-?\d+)$")
_MAX_OFFSET = 0.01  # Angstrom; single precision at 9800 A is 0.0005
_MAX_FILES = 3  # of a folder, to recognise it
_MILKY_WAY = (1 << 61) | (1 << 32) | (1 << 33) | (1 << 34)  # MWS_ANY and the standard stars in DESI_TARGET


@dataclass(frozen=True, kw_only=True)
class _Arm:
    """Pixels of one arm: the index of the first one on `WAVELENGTH`, and (n, p) arrays."""

    start: int
    flux: FloatArray
    ivar: FloatArray
    good: BoolArray


def recognise(path: Path) -> bool:
    """Whether `path` is a DESI coadd, a flux table, or a folder with such files."""
    files = _coadds(path)[:_MAX_FILES] if path.is_dir() else [path]
    return any(_is_native(contents) or _is_table(contents) for file in files for contents in look(file))


def read(path: Path, *, stars: bool = False) -> Spectra:
    """Read a file, or all coadds of a folder; for unreadable files see `io.many.read_each`.

    The arms are coadded with inverse-variance weights on one grid. A pixel of an arm is used where its mask
    is 0 and its inverse variance positive; pixels that no arm covers are masked. If a file redrock-*.fits or
    zbest-*.fits lies beside coadd-*.fits, its classification is joined on TARGETID. Of a target in several
    files, observed by different programs, the spectrum of highest S/N is kept.

    Args:
        path: coadd-*.fits, or a folder: its files coadd-*, or without any, all but zbest-* and redrock-*.
        stars: whether to return only stars, see `redrock.select_stars`.

    Returns:
        Spectra in vacuum on `WAVELENGTH`. ids are TARGETIDs; meta: ra, dec (degrees), spectype, subtype,
        redshift, redshift_err, zwarn (-1 without redrock), milky_way (targeted as a star), snr (median per
        pixel; NaN without ivar), file. Flux tables have no uncertainties.

    Raises:
        DataError: there are no files, none can be read, or none has a star.
    """
    spectra = _deduplicate(read_folder(path, _coadds(Path(path)), read_file, _KIND))
    return redrock.select_stars(spectra) if stars else spectra


def read_stars(path: Path) -> Spectra:
    """Read the stars of a file or folder, see `read`."""
    return read(path, stars=True)


def read_file(path: Path) -> Spectra:
    """Read one DESI file, see `read`.

    Raises:
        DataError: the file is damaged, has neither layout, is not on the grid, or repeats a target.
    """
    with open_fits(path, _KIND, odd_cards=True) as hdus:
        names = {hdu.name.upper() for hdu in hdus}
        native = "FIBERMAP" in names
        if native:
            ids, meta = _fibermap(path, hdus)
            flux, ivar, mask = _coadd(_arms(path, hdus, names, len(ids)), len(ids))
        else:
            ids, flux = _flux_table(path, hdus)
            meta = redrock.unknown(len(ids))
    names_of, count = np.unique(ids, return_counts=True)
    if (count > 1).any():
        raise DataError(
            f"{path}: TARGETID {names_of[count > 1][0]} occurs more than once: single exposures, not a coadd?"
        )
    redrock.classify(path, ids, meta)
    if native:
        meta["snr"] = median_snr(flux, ivar, ~mask)
    return Spectra.build(
        WAVELENGTH,
        flux,
        ivar if native else None,
        mask if native else None,
        ids.astype(np.str_),
        meta={**meta, "file": np.full(len(ids), path.name)},
        survey="desi",
    )


def _deduplicate(spectra: Spectra) -> Spectra:
    """Keep the spectrum of highest S/N of each target, and report how many of each file are left out."""
    best = best_of_each(spectra.id, spectra.meta["snr"])
    if len(best) == len(spectra):
        return spectra
    others = np.delete(np.arange(len(spectra)), best)
    for file, count in Counter(spectra.meta["file"][others].tolist()).items():
        report_left_out(f"{file}: {count} targets have a higher S/N in other files")
    return spectra[best]


def _coadds(path: Path) -> list[Path]:
    """Return the file, or the folder's coadd-*; without any, its FITS files that are not redrock's."""
    files = fits_files(path)
    if not path.is_dir():
        return files
    named = [file for file in files if file.name.startswith("coadd-")]
    return named or [file for file in files if not file.name.startswith(redrock.PREFIXES)]


def _is_native(file: FitsContents) -> bool:
    return "FIBERMAP" in file.names and any(f"{arm}_FLUX" in file.names for arm in _arm_names(file.names))


def _is_table(file: FitsContents) -> bool:
    return "WAVELENGTH" in file.columns and any(_TARGET.match(name) for name in file.columns)


def _arm_names(names: set[str] | tuple[str, ...]) -> list[str]:
    return sorted(name.removesuffix("_WAVELENGTH") for name in names if name.endswith("_WAVELENGTH"))


def _fibermap(path: Path, hdus: fits.HDUList) -> tuple[IntArray, dict[str, AnyArray]]:
    table = hdus["FIBERMAP"].data
    if "TARGETID" not in table.names:
        raise DataError(f"{path} is not {_KIND}: its FIBERMAP has no column TARGETID")
    count = len(table)
    if count == 0:
        raise DataError(f"{path} contains no spectra: its FIBERMAP has no rows")
    meta = redrock.unknown(count)
    for key, column in (("ra", "TARGET_RA"), ("dec", "TARGET_DEC")):
        if column in table.names:
            meta[key] = np.asarray(table[column], dtype=np.float64)
    # DESI_TARGET in the main survey, SV1_DESI_TARGET and the like before it; these bits agree.
    for column in (name for name in table.names if name.endswith("DESI_TARGET")):
        meta["milky_way"] |= (np.asarray(table[column], dtype=np.int64) & _MILKY_WAY) != 0
    return np.asarray(table["TARGETID"], dtype=np.int64), meta


def _arms(path: Path, hdus: fits.HDUList, names: set[str], count: int) -> list[_Arm]:
    arms = []
    for arm in _arm_names(names):
        missing = [f"{arm}_{part}" for part in ("FLUX", "IVAR") if f"{arm}_{part}" not in names]
        if missing:
            raise DataError(f"{path} is not {_KIND}: it has {arm}_WAVELENGTH but no HDU {', '.join(missing)}")
        flux, ivar = (np.asarray(hdus[f"{arm}_{part}"].data, dtype=np.float64) for part in ("FLUX", "IVAR"))
        start = _start(path, np.asarray(hdus[f"{arm}_WAVELENGTH"].data, dtype=np.float64))
        shape = (count, hdus[f"{arm}_WAVELENGTH"].data.size)
        if flux.shape != shape or ivar.shape != shape:
            raise DataError(f"{path}: {arm}_FLUX {flux.shape} and {arm}_IVAR {ivar.shape} should be {shape}")
        good = np.isfinite(flux) & np.isfinite(ivar) & (ivar > 0)
        if f"{arm}_MASK" in names:
            good &= np.asarray(hdus[f"{arm}_MASK"].data) == 0
        arms.append(_Arm(start=start, flux=flux, ivar=ivar, good=good))
    if not arms:
        raise DataError(f"{path} is not {_KIND}: it has a FIBERMAP but no HDU *_WAVELENGTH")
    return arms


def _start(path: Path, wavelength: FloatArray) -> int:
    """Return the index on `WAVELENGTH` of an arm's first pixel."""
    start = int(np.rint((wavelength[0] - WAVELENGTH[0]) / 0.8))
    expected = WAVELENGTH[max(start, 0) : max(start, 0) + wavelength.size]
    if start < 0 or expected.size != wavelength.size or np.abs(wavelength - expected).max() > _MAX_OFFSET:
        raise DataError(f"{path}: wavelengths starting at {wavelength[0]:.2f} A are not on DESI's 0.8 A grid")
    return start


def _coadd(arms: list[_Arm], count: int) -> tuple[FloatArray, FloatArray, BoolArray]:
    """Coadd to (n, 7781) flux, ivar and mask: where arms overlap, the ivar-weighted mean and summed ivar."""
    weighted, ivar = np.zeros((count, WAVELENGTH.size)), np.zeros((count, WAVELENGTH.size))
    for arm in arms:
        at = slice(arm.start, arm.start + arm.flux.shape[1])
        weight = np.where(arm.good, arm.ivar, 0.0)
        weighted[:, at] += weight * np.where(arm.good, arm.flux, 0.0)
        ivar[:, at] += weight
    good = ivar > 0
    return np.divide(weighted, ivar, out=np.zeros_like(weighted), where=good), ivar, ~good


def _flux_table(path: Path, hdus: fits.HDUList) -> tuple[IntArray, FloatArray]:
    """Read ids and (n, 7781) flux of a table WAVELENGTH, TARGET1, TARGET2, ...; NaN where it has no pixel.

    The rows are the pixels of all arms in order of wavelength. Where arms overlap, a wavelength occurs twice,
    and its pixels are averaged.
    """
    table = hdus[1].data if len(hdus) > 1 and hasattr(hdus[1], "columns") else None
    targets = [] if table is None else [name for name in table.names if _TARGET.match(name)]
    if table is None or "WAVELENGTH" not in table.names or not targets:
        raise DataError(
            f"{path} is not {_KIND}: no FIBERMAP, and no table with WAVELENGTH and TARGET columns"
        )
    wavelength = np.asarray(table["WAVELENGTH"], dtype=np.float64)
    pixel = np.rint((wavelength - WAVELENGTH[0]) / 0.8).astype(int)
    if (pixel < 0).any() or (pixel >= WAVELENGTH.size).any():
        raise DataError(
            f"{path}: wavelengths from {wavelength.min():.1f} to {wavelength.max():.1f} A exceed DESI's range"
        )
    if np.abs(wavelength - WAVELENGTH[pixel]).max() > _MAX_OFFSET:
        raise DataError(f"{path}: its wavelengths are not on DESI's 0.8 A grid")
    flux = np.zeros((len(targets), WAVELENGTH.size))
    for row, name in enumerate(targets):
        np.add.at(flux[row], pixel, np.asarray(table[name], dtype=np.float64))
    times = np.bincount(pixel, minlength=WAVELENGTH.size)
    mean = np.divide(flux, times, out=np.full_like(flux, np.nan), where=times > 0)
    ids = [int(match[1]) for name in targets if (match := _TARGET.match(name))]
    return np.array(ids, dtype=np.int64), mean
