"""Open a FITS file so that whatever is wrong with it becomes one clear error."""

from __future__ import annotations

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

_DAMAGE = (OSError, KeyError, IndexError, TypeError, ValueError, EOFError, zlib.error)
"""What astropy and the code inside the block raise on files that are cut short, empty or something else."""


@contextmanager
def open_fits(
    path: Path, what: str, *, odd_cards: bool = False, memmap: bool = False
) -> Iterator[fits.HDUList]:
    """The HDUs of a file, for the block to take what it needs from.

    Args:
      path: the file.
      what: what it should be, for the message: "a MILES spectrum".
      odd_cards: whether headers that break the standard are how these files are, and not worth a warning.
      memmap: whether to leave on disk what is not asked for; the block must copy what it keeps.

    Raises:
      DataError: the file cannot be read, is cut short, or lacks what the block asks for.
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "error", message="File may have been truncated", category=AstropyUserWarning
            )
            if odd_cards:
                warnings.simplefilter("ignore", VerifyWarning)
            # The stream is ours to close: fits.open leaves its own open when it fails.
            with path.open("rb") as stream, fits.open(stream, memmap=memmap) as hdus:
                yield hdus
    except (*_DAMAGE, VerifyError, AstropyUserWarning) as error:
        line = str(error).strip().splitlines() or [type(error).__name__]
        raise DataError(f"{path} is not {what}: {line[0]}") from None


def linear_axis(header: fits.Header, pixels: int) -> np.ndarray:
    """(pixels,) coordinates along the first axis by CRVAL1, CDELT1 and CRPIX1."""
    first, step, reference = (float(header[key]) for key in ("CRVAL1", "CDELT1", "CRPIX1"))
    return first + step * (np.arange(pixels) + 1.0 - reference)
