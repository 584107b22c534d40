"""DESI: 3600-9824 A in vacuum, barycentric, 0.8 A, 1e-17 erg/s/cm2/A.

Two layouts: coadds as DESI publishes them, with an arm (B, R, Z) in HDUs of its own, and tables of flux alone
with a column for each target.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from astropy.io import fits

from specjax.errors import DataError
from specjax.spectra import Spectra
from specjax.surveys import redrock
from specjax.surveys.io.duplicates import best_of_each
from specjax.surveys.io.fits import open_fits
from specjax.surveys.io.many import leave_out, read_folder
from specjax.surveys.io.sniff import FitsSummary, fits_files, look
from specjax.surveys.signal import median_snr
from specjax.typing import AnyArray, BoolArray, FloatArray, IntArray

WAVELENGTH: FloatArray = np.round(3600.0 + 0.8 * np.arange(7781, dtype=np.float64), 6)
"""(7781,) vacuum Angstrom: the grid that all arms lie on."""

_WHAT = "a DESI coadd"
_TARGET = re.compile(r"TARGET(-?\d+)$")
_OFF_GRID = 0.01  # Angstrom; single precision at 9800 A is 0.0005
_MILKY_WAY = (1 << 61) | (1 << 32) | (1 << 33) | (1 << 34)  # MWS_ANY and the standard stars in DESI_TARGET


@dataclass(frozen=True, kw_only=True)
class _Arm:
    """Pixels of one arm: where they begin on `WAVELENGTH`, and (n, p) flux, ivar and what is good."""

    start: int
    flux: FloatArray
    ivar: FloatArray
    good: BoolArray


def recognise(path: Path) -> bool:
    """Whether `path` is a DESI coadd, a flux table, or a folder with such files."""
    return any(_is_native(file) or _is_table(file) for file in look_at_coadds(path))


def read(path: Path, *, stars: bool = False) -> Spectra:
    """One DESI file or all coadds of a folder; files that cannot be used are reported by `read_each`.

    The arms are coadded by inverse variance on one grid. A pixel of an arm takes part where its mask is 0 and
    its inverse variance positive; a pixel that no arm has is masked. Where a file redrock-*.fits or
    zbest-*.fits lies beside coadd-*.fits, its classification is joined on TARGETID. A target that several
    files have, of several programs, is taken from that of the highest S/N.

    Args:
      path: coadd-*.fits, or a folder: its files coadd-*, or if it has none, all but zbest-* and redrock-*.
      stars: whether only stars are wanted, see `redrock.select_stars`.

    Returns:
      Spectra in vacuum on `WAVELENGTH`; ids are TARGETIDs; meta ra, dec (degrees), spectype, subtype,
      redshift, redshift_err, zwarn (-1 without redrock), milky_way (targeted as a star), snr (median of a
      pixel; NaN without ivar), file. Flux tables have no uncertainties.

    Raises:
      DataError: no files, none that could be read, or no star among them.
    """
    spectra = _each_once(read_folder(path, _coadds(Path(path)), read_file, _WHAT))
    return redrock.select_stars(spectra) if stars else spectra


def read_stars(path: Path) -> Spectra:
    """`read` with stars alone."""
    return read(path, stars=True)


def read_file(path: Path) -> Spectra:
    """One DESI file, as `read`.

    Raises:
      DataError: the file is damaged, has neither layout, is off the grid, or has a target more than once.
    """
    with open_fits(path, _WHAT, odd_cards=True) as hdus:
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


def _each_once(spectra: Spectra) -> Spectra:
    """Of spectra of one target the one of the highest S/N; files say how many of theirs are left out."""
    best = best_of_each(spectra.id, spectra.meta["snr"])
    if len(best) == len(spectra):
        return spectra
    others = np.delete(np.arange(len(spectra)), best)
    for file, count in Counter(spectra.meta["file"][others].tolist()).items():
        leave_out(f"{file}: {count} targets, which other files have with a higher S/N")
    return spectra[best]


def look_at_coadds(path: Path) -> list[FitsSummary]:
    """Summaries of the first coadds of a folder, or of the file."""
    files = _coadds(path)[:3] if path.is_dir() else [path]
    return [summary for file in files for summary in look(file)]


def _coadds(path: Path) -> list[Path]:
    """The file, or the folder's coadd-*; without such, its FITS files that are not redrock's."""
    files = fits_files(path)
    if not path.is_dir():
        return files
    named = [file for file in files if file.name.startswith("coadd-")]
    return named or [file for file in files if not file.name.startswith(redrock.PREFIXES)]


def _is_native(file: FitsSummary) -> bool:
    return "FIBERMAP" in file.names and any(f"{arm}_FLUX" in file.names for arm in _arm_names(file.names))


def _is_table(file: FitsSummary) -> bool:
    return "WAVELENGTH" in file.columns and any(_TARGET.match(name) for name in file.columns)


def _arm_names(names: set[str] | tuple[str, ...]) -> list[str]:
    return sorted(name.removesuffix("_WAVELENGTH") for name in names if name.endswith("_WAVELENGTH"))


def _fibermap(path: Path, hdus: fits.HDUList) -> tuple[IntArray, dict[str, AnyArray]]:
    table = hdus["FIBERMAP"].data
    if "TARGETID" not in table.names:
        raise DataError(f"{path} is not {_WHAT}: its FIBERMAP has no column TARGETID")
    count = len(table)
    if count == 0:
        raise DataError(f"{path} holds no spectra: its FIBERMAP has no rows")
    meta = redrock.unknown(count)
    for key, column in (("ra", "TARGET_RA"), ("dec", "TARGET_DEC")):
        if column in table.names:
            meta[key] = np.asarray(table[column], dtype=np.float64)
    # DESI_TARGET in the main survey, SV1_DESI_TARGET and the like before it; these bits are the same.
    for column in (name for name in table.names if name.endswith("DESI_TARGET")):
        meta["milky_way"] |= (np.asarray(table[column], dtype=np.int64) & _MILKY_WAY) != 0
    return np.asarray(table["TARGETID"], dtype=np.int64), meta


def _arms(path: Path, hdus: fits.HDUList, names: set[str], count: int) -> list[_Arm]:
    arms = []
    for arm in _arm_names(names):
        missing = [f"{arm}_{part}" for part in ("FLUX", "IVAR") if f"{arm}_{part}" not in names]
        if missing:
            raise DataError(f"{path} is not {_WHAT}: it has {arm}_WAVELENGTH but no HDU {', '.join(missing)}")
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
        raise DataError(f"{path} is not {_WHAT}: it has a FIBERMAP but no HDU *_WAVELENGTH")
    return arms


def _start(path: Path, wavelength: FloatArray) -> int:
    """Index on `WAVELENGTH` of an arm's first pixel."""
    start = int(np.rint((wavelength[0] - WAVELENGTH[0]) / 0.8))
    expected = WAVELENGTH[max(start, 0) : max(start, 0) + wavelength.size]
    if start < 0 or expected.size != wavelength.size or np.abs(wavelength - expected).max() > _OFF_GRID:
        raise DataError(
            f"{path}: wavelengths that begin at {wavelength[0]:.2f} A are not on DESI's 0.8 A grid"
        )
    return start


def _coadd(arms: list[_Arm], count: int) -> tuple[FloatArray, FloatArray, BoolArray]:
    """(n, 7781) flux, ivar and mask: where arms overlap, the mean weighted by ivar and the sum of ivar."""
    weighted, ivar = np.zeros((count, WAVELENGTH.size)), np.zeros((count, WAVELENGTH.size))
    for arm in arms:
        at = slice(arm.start, arm.start + arm.flux.shape[1])
        weight = np.where(arm.good, arm.ivar, 0.0)
        weighted[:, at] += weight * np.where(arm.good, arm.flux, 0.0)
        ivar[:, at] += weight
    good = ivar > 0
    return np.divide(weighted, ivar, out=np.zeros_like(weighted), where=good), ivar, ~good


def _flux_table(path: Path, hdus: fits.HDUList) -> tuple[IntArray, FloatArray]:
    """Ids and (n, 7781) flux of a table WAVELENGTH, TARGET1, TARGET2, ...; NaN where it has no pixel.

    Its rows are the pixels of all arms in the order of wavelength, so that a wavelength occurs twice where
    arms overlap: those are averaged.
    """
    table = hdus[1].data if len(hdus) > 1 and hasattr(hdus[1], "columns") else None
    targets = [] if table is None else [name for name in table.names if _TARGET.match(name)]
    if table is None or "WAVELENGTH" not in table.names or not targets:
        raise DataError(f"{path} is not {_WHAT}: no FIBERMAP, and no table of WAVELENGTH and TARGET columns")
    wavelength = np.asarray(table["WAVELENGTH"], dtype=np.float64)
    pixel = np.rint((wavelength - WAVELENGTH[0]) / 0.8).astype(int)
    if (pixel < 0).any() or (pixel >= WAVELENGTH.size).any():
        raise DataError(f"{path}: wavelengths from {wavelength.min():.1f} to {wavelength.max():.1f} A")
    if np.abs(wavelength - WAVELENGTH[pixel]).max() > _OFF_GRID:
        raise DataError(f"{path}: its wavelengths are not on DESI's 0.8 A grid")
    flux = np.zeros((len(targets), WAVELENGTH.size))
    for row, name in enumerate(targets):
        np.add.at(flux[row], pixel, np.asarray(table[name], dtype=np.float64))
    times = np.bincount(pixel, minlength=WAVELENGTH.size)
    mean = np.divide(flux, times, out=np.full_like(flux, np.nan), where=times > 0)
    ids = [int(match[1]) for name in targets if (match := _TARGET.match(name))]
    return np.array(ids, dtype=np.int64), mean
