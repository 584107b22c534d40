"""Readers of survey files: each gives `Spectra`. The only place that knows file layouts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from specjax.errors import DataError
from specjax.spectra import Spectra
from specjax.surveys import (
    arrays,
    columns,
    desi,
    gaia_xp,
    image_stack,
    lamost,
    mastar,
    miles,
    prepared,
    redrock,
    sdss,
    sparcl,
    specclip,
    stelib,
)
from specjax.surveys.io import sniff
from specjax.surveys.signal import median_snr

__all__ = ["SURVEYS", "Survey", "read", "read_xp"]


@dataclass(frozen=True, kw_only=True)
class Survey:
    """One kind of input: what it is in words, how to recognise it and how to read it."""

    what: str
    recognise: Callable[[Path], bool]
    read: Callable[[Path], Spectra]


SURVEYS: dict[str, Survey] = {
    "miles": Survey(what="a folder of MILES files", recognise=miles.recognise, read=miles.read),
    "stelib": Survey(what="a folder of STELIB files", recognise=stelib.recognise, read=stelib.read),
    "mastar": Survey(what="a folder of mean MaStar spectra", recognise=mastar.recognise, read=mastar.read),
    "lamost": Survey(
        what="a LAMOST low-resolution FITS file or a folder of them",
        recognise=lamost.recognise,
        read=lamost.read,
    ),
    "desi": Survey(
        what="a DESI coadd FITS file or a folder of them", recognise=desi.recognise, read=desi.read
    ),
    "desi-stars": Survey(
        what="the same, stars alone, if asked for", recognise=lambda path: False, read=desi.read_stars
    ),
    "sdss": Survey(
        what="an SDSS spec-lite FITS file or a folder of them", recognise=sdss.recognise, read=sdss.read
    ),
    "image_stack": Survey(
        what="a FITS file with images FLUX, WAVE and optionally IVAR, MASK",
        recognise=image_stack.recognise,
        read=image_stack.read,
    ),
    "gaia_xp": Survey(
        what="a table or .npz of Gaia XP spectra, sampled or continuous",
        recognise=gaia_xp.recognise,
        read=gaia_xp.read,
    ),
    "prepared": Survey(
        what="an .h5 file that `specjax prepare` wrote", recognise=prepared.recognise, read=prepared.read
    ),
    "specclip": Survey(
        what="an .h5 file as SpecCLIP trains on", recognise=specclip.recognise, read=specclip.read
    ),
    "arrays": Survey(
        what="an .npz or .h5 file with wavelength, flux and optionally ivar, mask, id",
        recognise=arrays.recognise,
        read=arrays.read,
    ),
    "sparcl": Survey(what="a .json file of SPARCL records", recognise=sparcl.recognise, read=sparcl.read),
    "columns": Survey(
        what="a .csv, .ecsv or .parquet table with wavelength and flux, or a spectrum in each row",
        recognise=columns.recognise,
        read=columns.read,
    ),
}
"""What `read` knows, asked in this order."""

_UNDECLARED = {"arrays": arrays.read, "columns": columns.read}  # files that need not say medium and unit


def read(
    path: str | Path,
    survey: str | None = None,
    *,
    wavelength_medium: str | None = None,
    wavelength_unit: str | None = None,
) -> Spectra:
    """Spectra from a survey's files.

    Args:
      path: a folder or a file.
      survey: a key of `SURVEYS`; recognised from the files where None.
      wavelength_medium: "vacuum" or "air", for arrays and tables that do not say it (vacuum is assumed).
      wavelength_unit: "angstrom", "nm", "um" or "log10", likewise (Angstrom is assumed, and checked).

    Files of a folder that cannot be used are left out with a warning, see `batch.read_each`; a folder of a
    stellar library is read whole or not at all.

    Returns:
      Spectra. Where the survey says neither, meta has `file`, the name of a single file, and `snr`, the
      median of a pixel, if there are uncertainties.

    Raises:
      DataError: nothing there, nothing known, or spectra that cannot be used; the message says what was
        found.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise DataError(f"there is nothing at {path}")
    name = survey or _recognise(path)
    if name not in SURVEYS:
        raise DataError(f"unknown survey {name!r}: specjax reads {', '.join(SURVEYS)}")
    if name in _UNDECLARED:
        return _completed(_UNDECLARED[name](path, wavelength_medium, wavelength_unit), path)
    spectra = SURVEYS[name].read(path)
    if wavelength_medium not in (None, spectra.medium):
        raise DataError(f"{name} wavelengths are in {spectra.medium}, not {wavelength_medium}")
    if wavelength_unit not in (None, "angstrom"):
        raise DataError(f"{name} files say their wavelength unit: leave out {wavelength_unit!r}")
    return _completed(spectra, path)


def read_xp(path: str | Path) -> Spectra | None:
    """The Gaia XP side that a file of spectra brings along, row for row; None where it has none.

    Raises:
      DataError: a prepared file that is damaged.
    """
    path = Path(path).expanduser()
    side = prepared.read_xp(path)
    return specclip.read_xp(path) if side is None else side


def _completed(spectra: Spectra, path: Path) -> Spectra:
    """With the columns file and snr, where they are missing and can be known."""
    if not len(spectra):
        raise DataError(f"{path} holds no spectra")
    if spectra.prepared is not None:
        return spectra
    if "file" not in spectra.meta and path.is_file():
        spectra = spectra.with_meta(file=np.full(len(spectra), path.name))
    if "snr" not in spectra.meta and spectra.has_ivar:
        spectra = spectra.with_meta(snr=median_snr(spectra.flux, spectra.ivar, spectra.valid))
    return spectra


def _recognise(path: Path) -> str:
    for name, survey in SURVEYS.items():
        if survey.recognise(path):
            return name
    if path.is_file() and sniff.is_fits(path):
        sniff.summary(path)  # says what is wrong with a file that is damaged
        if path.name.startswith(redrock.PREFIXES):
            raise DataError(f"{path} holds what redrock says of a coadd: give the file coadd-* beside it")
    known = "; ".join(f"{survey.what} ({name})" for name, survey in SURVEYS.items())
    raise DataError(f"{path} is {_found(path)}, which specjax does not know. It reads {known}")


def _found(path: Path) -> str:
    if path.is_file():
        return f"a {path.suffix or 'suffixless'} file"
    kinds = sorted({entry.suffix or "no suffix" for entry in path.iterdir() if entry.is_file()})
    return f"a folder of {', '.join(kinds[:4])} files" if kinds else "a folder without files"
