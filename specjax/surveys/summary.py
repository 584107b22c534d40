"""What a file or folder of spectra holds, in numbers: the answer of `specjax info PATH`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from specjax.spectra import Spectra
from specjax.surveys import read
from specjax.surveys.io.many import collecting


def describe_file(path: str | Path, survey: str | None = None, **options: str | None) -> dict[str, Any]:
    """`describe_spectra` of what `surveys.read` gives, and the reasons of what it left out ("left_out").

    Raises:
      DataError: as `surveys.read`, which takes `options`.
    """
    with collecting() as reasons:
        spectra = read(path, survey, **options)
    return {**describe_spectra(spectra), "left_out": len(reasons), "reasons": reasons}


def describe_spectra(spectra: Spectra) -> dict[str, Any]:
    """Numbers of spectra and pixels, wavelengths, what is masked, and what is known of each star.

    Wavelengths are in Angstrom, positions in degrees. A range is [smallest, largest] of those that are known,
    None where none is.
    """
    wavelength = np.atleast_2d(spectra.wavelength)
    width = np.diff(wavelength, axis=-1)
    masked = spectra.mask.sum(axis=1)
    known = [np.isfinite(_numbers(spectra, name)) for name in ("ra", "dec", "snr")]
    return {
        "survey": spectra.survey,
        "spectra": len(spectra),
        "distinct_ids": len(np.unique(spectra.id)),
        "ids": spectra.id[:3].tolist(),
        "pixels": int(wavelength.shape[-1]),
        "wavelength_min_angstrom": round(float(wavelength.min()), 3),
        "wavelength_max_angstrom": round(float(wavelength.max()), 3),
        "pixel_width_angstrom": [_rounded(width.min()), _rounded(width.max())],
        "shared_grid": spectra.wavelength.ndim == 1,
        "medium": spectra.medium,
        "has_ivar": spectra.has_ivar,
        "masked_pixels": int(masked.sum()),
        "masked_fraction": round(float(spectra.mask.mean()), 4),
        "wholly_masked_spectra": int((masked == spectra.mask.shape[1]).sum()),
        "snr_known": int(known[2].sum()),
        "snr_median": _rounded(np.median(_numbers(spectra, "snr")[known[2]])) if known[2].any() else None,
        "snr_range": _range(spectra, "snr"),
        "positions_known": int((known[0] & known[1]).sum()),
        "ra_range_deg": _range(spectra, "ra"),
        "dec_range_deg": _range(spectra, "dec"),
        "columns": sorted(spectra.meta),
    }


def _numbers(spectra: Spectra, name: str) -> np.ndarray:
    """A column of numbers, NaN where it is absent or text."""
    values = spectra.meta.get(name)
    if values is None or values.dtype.kind not in "iuf" or values.ndim != 1:
        return np.full(len(spectra), np.nan)
    return values.astype(np.float64)


def _range(spectra: Spectra, name: str) -> list[float] | None:
    values = _numbers(spectra, name)
    values = values[np.isfinite(values)]
    return [_rounded(values.min()), _rounded(values.max())] if values.size else None


def _rounded(value: float) -> float:
    """Six digits are enough for people."""
    return float(f"{value:.6g}")
