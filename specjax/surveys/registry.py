"""The table of supported surveys, and `read`, which finds the reader for a file or folder."""

import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from specjax.errors import DataError
from specjax.spectra import Spectra, joint_name
from specjax.surveys import (
    arrays,
    columns,
    desi,
    fits_spectrum,
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
from specjax.surveys.io.many import join, one_warning, read_each
from specjax.surveys.io.snr import median_snr


@dataclass(frozen=True, kw_only=True)
class Survey:
    """A supported kind of input.

    Attributes:
        description: noun phrase for messages.
        recognise: whether a path is of this kind.
        read: its reader.
    """

    description: str
    recognise: Callable[[Path], bool]
    read: Callable[[Path], Spectra]


SURVEYS: dict[str, Survey] = {
    "miles": Survey(description="a folder of MILES files", recognise=miles.recognise, read=miles.read),
    "stelib": Survey(description="a folder of STELIB files", recognise=stelib.recognise, read=stelib.read),
    "mastar": Survey(
        description="a folder of mean MaStar spectra", recognise=mastar.recognise, read=mastar.read
    ),
    "lamost": Survey(
        description="a LAMOST low-resolution FITS file or a folder of them",
        recognise=lamost.recognise,
        read=lamost.read,
    ),
    "desi": Survey(
        description="a DESI coadd FITS file or a folder of them", recognise=desi.recognise, read=desi.read
    ),
    "desi-stars": Survey(
        description="the stars of DESI coadds, only on request",
        recognise=lambda path: False,
        read=desi.read_stars,
    ),
    "sdss": Survey(
        description="an SDSS spec-lite FITS file or a folder of them",
        recognise=sdss.recognise,
        read=sdss.read,
    ),
    "image_stack": Survey(
        description="a FITS file with images FLUX, WAVE and optionally IVAR, MASK",
        recognise=image_stack.recognise,
        read=image_stack.read,
    ),
    "gaia_xp": Survey(
        description="a table or .npz of Gaia XP spectra, sampled or continuous",
        recognise=gaia_xp.recognise,
        read=gaia_xp.read,
    ),
    "prepared": Survey(
        description="an .h5 file written by `specjax prepare`",
        recognise=prepared.recognise,
        read=prepared.read,
    ),
    "specclip": Survey(
        description="an .h5 training file of SpecCLIP", recognise=specclip.recognise, read=specclip.read
    ),
    "arrays": Survey(
        description="an .npz or .h5 file with wavelength, flux and optionally ivar, mask, id",
        recognise=arrays.recognise,
        read=arrays.read,
    ),
    "sparcl": Survey(
        description="a .json file of SPARCL records", recognise=sparcl.recognise, read=sparcl.read
    ),
    "fits_spectrum": Survey(
        description="a FITS table with wavelength and flux, or an image of one spectrum",
        recognise=fits_spectrum.recognise,
        read=fits_spectrum.read,
    ),
    "columns": Survey(
        description="a .csv, .ecsv or .parquet table with wavelength and flux, or with one spectrum per row",
        recognise=columns.recognise,
        read=columns.read,
    ),
}
"""The supported surveys, in the order in which `read` tries them."""

UNDECLARED = {"arrays": arrays, "columns": columns, "fits_spectrum": fits_spectrum}
"""Readers of files that may leave out the medium and the unit of their wavelengths."""

_SUFFIXES = {
    "arrays": (*arrays.NPZ, *arrays.HDF5),
    "columns": columns.SUFFIXES,
    "sparcl": sparcl.SUFFIXES,
    "prepared": arrays.HDF5,
    "specclip": arrays.HDF5,
}
_UNDECLARED_SUFFIXES = (*_SUFFIXES["arrays"], *_SUFFIXES["columns"], *sniff.SUFFIXES)
_OF_FOLDERS = ("miles", "stelib", "mastar", "lamost", "desi", "desi-stars", "sdss", "gaia_xp")
_WAY_OUT = (
    "Any spectra can be given as np.savez('FILE.npz', wavelength=..., flux=..., ivar=..., id=...), and those"
    " that specutils reads as Spectra.from_specutils(...); docs/inputs.md describes all formats"
)


def read(
    path: str | Path,
    survey: str | None = None,
    *,
    wavelength_medium: str | None = None,
    wavelength_unit: str | None = None,
) -> Spectra:
    """Read the spectra of a file or folder.

    Folders are read to any depth, as one survey if their first files are of one, else file by file. From one
    with FITS files only these are read, unless they hold no spectra. Files of a folder that cannot be read
    are left out with a warning, see `io.many.read_each`; a folder of a stellar library is read completely or
    not at all.

    Args:
        path: a file or a folder.
        survey: a key of `SURVEYS`; recognised from the files if None.
        wavelength_medium: "vacuum" or "air", for arrays and tables that do not declare it; default vacuum.
        wavelength_unit: "angstrom", "nm", "um" or "log10", likewise; default Angstrom, which is checked.

    Returns:
        Spectra. Where the survey does not provide them, meta has `file`, the name of a single file, and, if
        there are uncertainties, `snr`, the median signal-to-noise ratio per pixel.

    Raises:
        DataError: nothing exists at `path`, its kind is not recognised, or its spectra cannot be used.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise DataError(f"{path} does not exist")
    if survey is not None and survey not in SURVEYS:
        raise DataError(
            f"unknown survey {survey!r}: specjax reads {', '.join(SURVEYS)}; leave it out for your own files"
        )
    if path.is_dir() and not _is_of_one_survey(path, survey):
        return _read_folder(path, survey, wavelength_medium, wavelength_unit)
    name = survey or recognise(path)
    if name in UNDECLARED:
        return _with_file_and_snr(UNDECLARED[name].read(path, wavelength_medium, wavelength_unit), path)
    spectra = SURVEYS[name].read(path)
    if wavelength_medium not in (None, spectra.medium):
        raise DataError(f"{name} wavelengths are in {spectra.medium}, not {wavelength_medium}")
    if wavelength_unit not in (None, "angstrom"):
        raise DataError(f"{name} files declare their wavelength unit: leave out {wavelength_unit!r}")
    return _with_file_and_snr(spectra, path)


def _is_of_one_survey(folder: Path, survey: str | None) -> bool:
    """Return whether a reader takes the folder as a whole."""
    return survey in _OF_FOLDERS if survey else any(SURVEYS[name].recognise(folder) for name in _OF_FOLDERS)


def _read_folder(folder: Path, survey: str | None, medium: str | None, unit: str | None) -> Spectra:
    """Read all files below a folder, each as what it is.

    Raises:
        DataError: there are none, or none can be read.
    """
    files = [file for file in spectra_below(folder, survey) if not file.name.startswith(redrock.PREFIXES)]
    if not files:
        recognise(folder)  # raises
    places = places_of(files)

    def read_file(file: Path) -> Spectra:
        spectra = read_in_place(file, places.get(file, ""), survey, medium, unit)
        if file in places and spectra.survey == sniff.stem(file):  # a name that says nothing
            spectra = spectra.derive(survey=folder.absolute().name)
        return spectra.with_meta(file=np.full(len(spectra), str(file.relative_to(folder))))

    with one_warning(folder):
        parts = read_each(files, read_file, "a file of spectra")[0]
    return join(parts).derive(survey=joint_name([part.survey for part in parts], folder.absolute().name))


def places_of(files: Sequence[Path]) -> dict[Path, str]:
    """Return the folder of each file whose name other files have, too, from where their paths part.

    >>> places_of([Path("data/a/star.csv"), Path("data/b/star.csv"), Path("data/b/other.csv")])
    {PosixPath('data/a/star.csv'): 'a/', PosixPath('data/b/star.csv'): 'b/'}
    """
    count = Counter(sniff.stem(file) for file in files)
    alike = [file for file in files if count[sniff.stem(file)] > 1]
    if not alike:
        return {}
    shared = Path(os.path.commonpath([file.parent for file in alike]))
    return {file: f"{file.parent.relative_to(shared).as_posix()}/" for file in alike if file.parent != shared}


def read_in_place(
    path: Path, place: str, survey: str | None, medium: str | None, unit: str | None
) -> Spectra:
    """Read a file of a folder, see `read`; ids that are the name of a file of one's own begin with its place.

    Args:
        path: the file.
        place: as in `places_of`, "" if the name of the file is enough. Files of surveys have names of their
            own, so that the same name stands for the same spectrum.
        survey: as for `read`.
        medium: likewise.
        unit: likewise.

    Raises:
        DataError: as `read`.
    """
    spectra = read(path, survey, wavelength_medium=medium, wavelength_unit=unit)
    name = sniff.stem(path)
    named = all(one == name or one.startswith(f"{name}-") for one in spectra.id.tolist())
    if not (place and named and (survey or recognise(path)) in UNDECLARED):
        return spectra
    return spectra.derive(id=np.char.add(place, spectra.id))


def spectra_below(folder: Path, survey: str | None = None) -> list[Path]:
    """Return the files below a folder that may be spectra, or those that may be of a survey.

    These are the FITS files if any of them holds spectra, else all others: FITS files beside spectra of
    another format are often tables of labels.
    """
    fits, others = sniff.files_by_kind(folder)
    if survey in _SUFFIXES:
        return [file for file in others if file.name.lower().endswith(_SUFFIXES[survey])]
    hidden = bool(others) and survey is None and all(map(_is_no_spectrum, fits))
    return others if hidden else fits or others


def _is_no_spectrum(file: Path) -> bool:
    """Return whether a FITS file can be read but is of no known kind."""
    try:
        sniff.contents_of(file)
    except DataError:  # damaged, for its reader to refuse
        return False
    return not (
        file.name.startswith(redrock.PREFIXES) or any(survey.recognise(file) for survey in SURVEYS.values())
    )


def is_undeclared(path: Path) -> bool:
    """Return whether a file is of a kind that may leave out the medium of its wavelengths, and does so."""
    if not path.is_file() or not path.name.lower().endswith(_UNDECLARED_SUFFIXES):
        return False
    try:
        name = recognise(path)
    except DataError:
        return False
    return name in UNDECLARED and not UNDECLARED[name].declares_medium(path)


def read_xp(path: str | Path) -> Spectra | None:
    """Read the Gaia XP spectra stored beside the spectra of a file, row for row; None if it has none.

    Raises:
        DataError: a prepared file is damaged.
    """
    path = Path(path).expanduser()
    partner = prepared.read_xp(path)
    return specclip.read_xp(path) if partner is None else partner


def _with_file_and_snr(spectra: Spectra, path: Path) -> Spectra:
    """Add the columns file and snr where they are missing and can be determined."""
    if not len(spectra):
        raise DataError(f"{path} contains no spectra")
    if spectra.prepared is not None:
        return spectra
    if "file" not in spectra.meta and path.is_file():
        spectra = spectra.with_meta(file=np.full(len(spectra), path.name))
    if "snr" not in spectra.meta and spectra.has_ivar:
        spectra = spectra.with_meta(snr=median_snr(spectra.flux, spectra.ivar, spectra.valid))
    return spectra


def recognise(path: Path) -> str:
    """Return the key in `SURVEYS` of a file or folder, from its headers.

    Raises:
        DataError: its kind is not recognised, or it is damaged.
    """
    for name, survey in SURVEYS.items():
        if survey.recognise(path):
            return name
    if path.is_file() and sniff.is_fits(path):
        sniff.contents_of(path)  # raises if the file is damaged
        if path.name.startswith(redrock.PREFIXES):
            raise DataError(f"{path} is redrock's classification of a coadd: give the file coadd-* beside it")
    raise DataError(
        f"{path} is {_describe(path)}, which specjax does not recognise. It reads {', '.join(SURVEYS)}."
        f" {_WAY_OUT}"
    )


def _describe(path: Path) -> str:
    if path.is_file():
        return (
            fits_spectrum.describe(path) if sniff.is_fits(path) else f"a {path.suffix or 'suffixless'} file"
        )
    kinds = sorted({entry.suffix or "no suffix" for entry in path.iterdir() if entry.is_file()})
    return f"a folder of {', '.join(kinds[:4])} files" if kinds else "a folder without files"
