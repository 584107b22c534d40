"""Opening FITS files, with every fault of a file turned into one clear error.

What a file offers against damage is used: the CRC-32 of a gzipped file, and CHECKSUM and DATASUM of the HDUs
that are read. An uncompressed file without these has nothing by which damage could be noticed.
"""

import gzip
import io
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from astropy.io import fits
from astropy.io.fits.verify import VerifyError, VerifyWarning
from astropy.utils.exceptions import AstropyUserWarning

from specjax.errors import DataError
from specjax.typing import FloatArray

_DAMAGE = (OSError, LookupError, TypeError, AttributeError, ValueError, EOFError, zlib.error)
"""Raised by astropy, and by the code inside the block, on truncated, empty or foreign files."""

_SUMS = "(Check|Data)sum verification failed"
_GZIP = b"\x1f\x8b"
_IN_MEMORY = 64 << 20  # bytes of a gzipped file that is unpacked at once; a larger one is read twice
_CHUNK = 1 << 20


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
            # The stream is opened and closed here: fits.open leaves its own open when it fails.
            with (
                path.open("rb") as stream,
                _unpacked(stream) if check else stream as content,
                fits.open(content, memmap=memmap, checksum=check) as hdus,
            ):
                yield hdus
    except gzip.BadGzipFile as error:
        raise DataError(f"{path} is damaged: {error}") from None
    except (*_DAMAGE, VerifyError, AstropyUserWarning) as error:
        line = str(error).strip().splitlines() or [type(error).__name__]
        fault = "damaged" if line[0].startswith(("Checksum", "Datasum")) else f"not {kind}"
        raise DataError(f"{path} is {fault}: {line[0]}") from None


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
