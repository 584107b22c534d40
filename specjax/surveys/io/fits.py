"""Opening FITS files, with every fault of a file turned into one clear error.

What a file offers against damage is used: the CRC-32 of a gzipped file, and CHECKSUM and DATASUM of the HDUs
that are read. An uncompressed file without these has nothing by which damage could be noticed.
"""

import gzip
import io
import re
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from astropy.io import fits
from astropy.io.fits.verify import VerifyError, VerifyWarning
from astropy.utils.exceptions import AstropyUserWarning

from specjax.errors import DataError
from specjax.typing import FloatArray

_DAMAGE = (OSError, LookupError, TypeError, AttributeError, ValueError, EOFError, zlib.error)
"""Raised by astropy, and by the code inside the block, on truncated, empty or foreign files."""

_SUMS = "(Check|Data)sum verification failed"
_DROPPED = "Error validating header for HDU"
_GZIP = b"\x1f\x8b"
_IN_MEMORY = 64 << 20  # bytes of a gzipped file that is unpacked at once; a larger one is read twice
_CHUNK = 1 << 20
_EXTENSION = b"XTENSION"


@contextmanager
def open_fits(
    path: Path, kind: str, *, odd_cards: bool = False, memmap: bool = False, check: bool = True
) -> Iterator[fits.HDUList]:
    """Open a FITS file for the duration of a `with` block and yield its HDUs.

    Args:
        path: the file.
        kind: what the file should be, for the message: "a MILES spectrum".
        odd_cards: whether headers that violate the standard are normal for these files, so not worth a
            warning.
        memmap: whether to read only the data that are accessed; the block must copy whatever it keeps.
        check: whether to compare checksums; without, only the beginning of a gzipped file is read.

    Raises:
        DataError: the file cannot be read, is damaged, or lacks something that the block accesses.
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "error", message="File may have been truncated", category=AstropyUserWarning
            )
            warnings.filterwarnings("error", message=_SUMS, category=AstropyUserWarning)
            if odd_cards:
                warnings.simplefilter("ignore", VerifyWarning)
            dropped = _collect_dropped()
            # The stream is opened and closed here: fits.open leaves its own open when it fails.
            with (
                path.open("rb") as stream,
                _unpacked(stream) if check else stream as content,
                fits.open(content, memmap=memmap, checksum=check) as hdus,
            ):
                yield hdus
                if dropped and _follows_extension(hdus, content):
                    raise DataError(f"{path} is damaged: its HDU {dropped[0]} cannot be read")
    except gzip.BadGzipFile as error:
        raise DataError(f"{path} is damaged: {error}") from None
    except (*_DAMAGE, VerifyError, AstropyUserWarning) as error:
        line = str(error).strip().splitlines() or [type(error).__name__]
        fault = "damaged" if line[0].startswith(("Checksum", "Datasum")) else f"not {kind}"
        raise DataError(f"{path} is {fault}: {line[0]}") from None


def _collect_dropped() -> list[str]:
    """Return a list that gets the number of an HDU that astropy drops, with those after it, and a warning.

    The caller is in a block of `catch_warnings`, which restores how warnings are shown.
    """
    dropped: list[str] = []
    show = warnings.showwarning

    def collect(message: Warning | str, *about: Any, **more: Any) -> None:
        if found := re.match(rf"{_DROPPED} #(\d+)", str(message)):
            dropped.append(found[1])
        else:
            show(message, *about, **more)

    warnings.filterwarnings("always", message=_DROPPED, category=VerifyWarning)
    warnings.showwarning = collect
    return dropped


def _follows_extension(hdus: fits.HDUList, content: BinaryIO) -> bool:
    """Return whether an extension follows the HDUs that astropy has read, and not merely further bytes."""
    place = hdus[-1].fileinfo()
    if place is None:
        return False
    content.seek(place["datLoc"] + place["datSpan"])
    return content.read(len(_EXTENSION)) == _EXTENSION


def _unpacked(stream: BinaryIO) -> BinaryIO:
    """Return the content of a gzipped file, all of which is compared with its CRC-32; other files unchanged.

    astropy reads no further than the last HDU that is used, and so never sees the CRC.

    Raises:
        OSError, EOFError, zlib.error: the file is damaged.
    """
    packed = stream.read(len(_GZIP)) == _GZIP
    stream.seek(0)
    if not packed:
        return stream
    with gzip.GzipFile(fileobj=stream) as file:
        content = io.BytesIO(file.read(_IN_MEMORY))
        large = False
        while file.read(_CHUNK):
            large = True
    stream.seek(0)
    return stream if large else content


def add_checksums(path: Path) -> None:
    """Add CHECKSUM and DATASUM to each HDU of a file."""
    with fits.open(path, mode="update") as hdus:
        for hdu in hdus:
            hdu.add_checksum(
                when="of the HDU"
            )  # in place of the time, with which no two files would be equal


def linear_axis(header: fits.Header, pixels: int) -> FloatArray:
    """Return (pixels,) coordinates along the first axis from CRVAL1, CDELT1 and CRPIX1."""
    first, step, reference = (float(header[key]) for key in ("CRVAL1", "CDELT1", "CRPIX1"))
    return first + step * (np.arange(pixels, dtype=np.float64) + 1.0 - reference)
