"""Files that specjax may replace: those that it has written. Any other file of a user is left unchanged.

Every format says in its own way who wrote a file: metadata of a table, attributes of HDF5, a text in a
picture. CSV has no metadata, so that its columns must be those that a command writes.
"""

import re
import zipfile
from collections.abc import Callable
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np

from specjax.errors import SpecjaxError

MARK = "specjax"
"""The key of the metadata that holds the version of specjax."""

GENERATOR = '<meta name="generator" content="specjax">'
"""The mark of an HTML page."""

PNG_NOTES, PDF_NOTES = {"Software": MARK}, {"Creator": MARK}
"""The marks of pictures, as matplotlib takes them."""

_BEGINNING = 1 << 16  # bytes of a file that hold its mark
_LABELLED = (["id", "ra", "dec", "snr"], ["separation", "duplicate_of", "flag"])  # first and last columns
_TOWERS = ("_lamost", "_gaia_xp")  # which labels of `check-published` are of
_SIMILAR = ["query", "query_flag", "rank", "id", "row", "similarity", "flag"]


def check_replaceable(*paths: Path) -> None:
    """Check that files may be written, before a long computation: there is none, or specjax has written it.

    Raises:
        SpecjaxError: there is another file, which is not changed.
    """
    for path in paths:
        if path.is_file() and path.stat().st_size and not _is_own(path):
            raise SpecjaxError(
                f"{path} exists and was not written by specjax; it is left unchanged: write to another file,"
                " or remove it first"
            )


def _is_own(path: Path) -> bool:
    recognise = _RECOGNISED.get(path.suffix.lower())
    try:
        return recognise is not None and recognise(path)
    except Exception:  # whatever a damaged file raises: it is not recognised
        return False


def _ecsv(path: Path) -> bool:
    with path.open(encoding="utf-8") as file:
        return any(re.match(rf"# - \{{?{MARK}: ", line) for line in takewhile(_is_comment, file))


def _is_comment(line: str) -> bool:
    return line.startswith("#")


def _csv(path: Path) -> bool:
    """Whether the columns are those of `predict`, `similar`, `label`, `split` or `check-published`."""
    with path.open(encoding="utf-8") as file:
        names = file.readline().strip().split(",")
    predicted = names[0] == "id" and names[-3:] == ["flag", "masked_fraction", "distance"]
    labelled = (names[:4], names[-3:]) == _LABELLED
    roles = [name for name in names if re.fullmatch(r"split_\d+", name)]
    split = bool(roles) and names[-len(roles) :] == [f"split_{number}" for number in range(len(roles))]
    published = names[0] == "id" and all(name.endswith(_TOWERS) for name in names[1:]) and len(names) > 1
    return predicted or labelled or split or published or names == _SIMILAR


def _fits(path: Path) -> bool:
    from astropy.io import fits

    with fits.open(path) as hdus:
        return any(MARK in hdu.header for hdu in hdus)


def _hdf5(path: Path) -> bool:
    import h5py  # slow to import

    with h5py.File(path) as file:
        return _is_named(dict(file.attrs))


def _npz(path: Path) -> bool:
    with zipfile.ZipFile(path) as archive:
        names = {name.removesuffix(".npy") for name in archive.namelist()} & {MARK, "simulated"}
    with np.load(path) as file:
        return _is_named({name: str(file[name]) for name in names})


def _is_named(notes: dict[str, Any]) -> bool:
    """Whether notes of an array file name specjax, as `embed`, `prepare` or `simulate` do."""
    texts = {
        name: value.decode() if isinstance(value, bytes) else str(value) for name, value in notes.items()
    }
    created = texts.get("creator", "").startswith(f"{MARK} ")
    return MARK in texts or created or texts.get("simulated", "").startswith(f"by {MARK} ")


def _contains(text: str) -> Callable[[Path], bool]:
    """Return whether a text is in the beginning or the end of a file."""

    def found(path: Path) -> bool:
        with path.open("rb") as file:
            beginning = file.read(_BEGINNING)
            file.seek(max(path.stat().st_size - 4 * _BEGINNING, 0))
            return text.encode() in beginning or text.encode() in file.read()

    return found


_RECOGNISED: dict[str, Callable[[Path], bool]] = {
    ".ecsv": _ecsv,
    ".csv": _csv,
    ".fits": _fits,
    ".vot": _contains(f'name="{MARK}"'),
    ".parquet": _contains(f"{{{MARK}: "),
    ".h5": _hdf5,
    ".hdf5": _hdf5,
    ".hdf": _hdf5,
    ".npz": _npz,
    ".png": _contains(f"Software\0{MARK}"),
    ".pdf": _contains(f"/Creator ({MARK})"),
    ".html": _contains(GENERATOR),
}
