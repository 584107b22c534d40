"""Reading .npz files, with every fault of a file turned into one clear error."""

import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from specjax.typing import AnyArray

_END = struct.Struct("<4s4H2LH")  # the end of a zip file; the fifth field is the number of members
_MANY = 0xFFFF  # that number in a file with more members, which has it elsewhere


class NpzError(ValueError):
    """A damaged .npz file; the message is one line without the name of the file."""


def read_npz(
    path: Path, wanted: Callable[[str], bool] = lambda name: True, *, limit: int | None = None
) -> dict[str, AnyArray]:
    """Read the arrays of a file, each of which is compared with its CRC-32.

    Args:
        path: the file.
        wanted: whether an array is read, by its name.
        limit: bytes that all arrays may have, without limit by default.

    Raises:
        FileNotFoundError: there is no such file.
        NpzError: it is damaged or unreadable, or its arrays are too large.
    """
    try:
        # The stream is opened and closed here: np.load leaves its own open when it fails.
        with path.open("rb") as stream:
            _check_members(stream, limit)
            stream.seek(0)
            with np.load(stream, allow_pickle=False) as file:
                return {name: file[name] for name in file.files if wanted(name)}
    except FileNotFoundError:
        raise
    except MemoryError:
        raise NpzError("its arrays do not fit into memory") from None
    except Exception as error:  # zipfile, zlib, NumPy and its parser of headers raise many types
        raise NpzError(_line(error)) from None


def _check_members(stream: Any, limit: int | None) -> None:
    """Check the size of all arrays, and that the directory names all of them as they are before their data.

    An array that damage to the directory hides or renames is otherwise overlooked.
    """
    with zipfile.ZipFile(stream) as archive:
        members = archive.infolist()
        stream.seek(-_END.size - len(archive.comment), 2)
        count = _END.unpack(stream.read(_END.size))[4]
        if count not in (len(members), _MANY):
            raise NpzError(f"its directory lists {len(members)} of {count} arrays")
        size = sum(member.file_size for member in members)
        if limit is not None and size > limit:
            raise NpzError(f"it would unpack to {size / 1e9:.0f} GB, too much for spectra")
        for member in members:
            archive.open(member).close()


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
