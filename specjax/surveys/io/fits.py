"""Opening FITS files, with every fault of a file turned into one clear error."""

import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from astropy.io import fits
from astropy.io.fits.verify import VerifyError, VerifyWarning
from astropy.utils.exceptions import AstropyUserWarning

from specjax.errors import DataError
from specjax.typing import FloatArray

_DAMAGE = (OSError, KeyError, IndexError, TypeError, ValueError, EOFError, zlib.error)
"""Raised by astropy, and by the code inside the block, on truncated, empty or foreign files."""


@contextmanager
def open_fits(
    path: Path, kind: str, *, odd_cards: bool = False, memmap: bool = False
) -> Iterator[fits.HDUList]:
    """Open a FITS file for the duration of a `with` block and yield its HDUs.

    Args:
        path: the file.
        kind: what the file should be, for the message: "a MILES spectrum".
        odd_cards: whether headers that violate the standard are normal for these files, so not worth a
            warning.
        memmap: whether to read only the data that are accessed; the block must copy whatever it keeps.

    Raises:
        DataError: the file cannot be read, is truncated, or lacks something that the block accesses.
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "error", message="File may have been truncated", category=AstropyUserWarning
            )
            if odd_cards:
                warnings.simplefilter("ignore", VerifyWarning)
            # The stream is opened and closed here: fits.open leaves its own open when it fails.
            with path.open("rb") as stream, fits.open(stream, memmap=memmap) as hdus:
                yield hdus
    except (*_DAMAGE, VerifyError, AstropyUserWarning) as error:
        line = str(error).strip().splitlines() or [type(error).__name__]
        raise DataError(f"{path} is not {kind}: {line[0]}") from None


def linear_axis(header: fits.Header, pixels: int) -> FloatArray:
    """Return (pixels,) coordinates along the first axis from CRVAL1, CDELT1 and CRPIX1."""
    first, step, reference = (float(header[key]) for key in ("CRVAL1", "CDELT1", "CRPIX1"))
    return first + step * (np.arange(pixels, dtype=np.float64) + 1.0 - reference)
