"""Descriptions of models and of spectra, as printed by `specjax info`."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from specjax.spectra import Spectra
from specjax.surveys import read
from specjax.surveys.io.many import collecting
from specjax.typing import FloatArray

if TYPE_CHECKING:  # describing spectra needs neither JAX nor the models
    from specjax.foundation import Foundation


def describe_model(model: "Foundation") -> dict[str, Any]:
    """Return the name and labels of a loaded model, the parameter counts of its parts, and its digest."""
    from specjax import lora

    parts = {name: lora.count_parameters(tree) for name, tree in _parts(model.params).items()}
    return {
        "name": model.config.name,
        "labels": list(model.config.labels),
        "parameters": parts,
        "total": sum(parts.values()),
        "digest": model.digest,
    }


def describe_file(path: str | Path, survey: str | None = None, **options: str | None) -> dict[str, Any]:
    """Describe the spectra of a file or folder, and count what could not be read ("left_out", "reasons").

    Args:
        path: a file or a folder.
        survey: a key of `surveys.SURVEYS`; recognised from the files if None.
        **options: keywords of `surveys.read`.

    Raises:
        DataError: as `surveys.read`.
    """
    with collecting() as reasons:
        spectra = read(path, survey, **options)
    return {**describe_spectra(spectra), "left_out": len(reasons), "reasons": reasons}


def describe_spectra(spectra: Spectra) -> dict[str, Any]:
    """Count spectra and pixels, and return the ranges of wavelength, S/N and position.

    Wavelengths are in Angstrom, positions in degrees. A range is [smallest, largest] of the known values,
    None if there are none.
    """
    wavelength = np.atleast_2d(spectra.wavelength)
    width = np.diff(wavelength, axis=-1)
    masked = spectra.mask.sum(axis=1)
    ra, dec, snr = (_numbers(spectra, name) for name in ("ra", "dec", "snr"))
    known = snr[np.isfinite(snr)]
    return {
        "survey": spectra.survey,
        "spectra": len(spectra),
        "distinct_ids": len(np.unique(spectra.id)),
        "ids": spectra.id[:3].tolist(),
        "pixels": int(wavelength.shape[-1]),
        "wavelength_min_angstrom": round(float(wavelength.min()), 3),
        "wavelength_max_angstrom": round(float(wavelength.max()), 3),
        "pixel_width_angstrom": _range(width),
        "shared_grid": spectra.wavelength.ndim == 1,
        "medium": spectra.medium,
        "has_ivar": spectra.has_ivar,
        "masked_pixels": int(masked.sum()),
        "masked_fraction": round(float(spectra.mask.mean()), 4),
        "wholly_masked_spectra": int((masked == spectra.mask.shape[1]).sum()),
        "snr_known": len(known),
        "snr_median": _rounded(np.median(known)) if known.size else None,
        "snr_range": _range(snr),
        "positions_known": int((np.isfinite(ra) & np.isfinite(dec)).sum()),
        "ra_range_deg": _range(ra),
        "dec_range_deg": _range(dec),
        "columns": sorted(spectra.meta),
    }


def _parts(params: Mapping[str, Any]) -> dict[str, Any]:
    """Split the towers into encoder and projection; everything else is one part."""
    parts: dict[str, Any] = {}
    for name, tree in params.items():
        if name in ("lamost", "gaia_xp"):
            parts |= {f"{name}/{part}": tree[part] for part in tree}
        else:
            parts[name] = tree
    return parts


def _numbers(spectra: Spectra, name: str) -> FloatArray:
    """Return a numeric column; NaN if it is absent or text."""
    values = spectra.meta.get(name)
    if values is None or values.dtype.kind not in "iuf" or values.ndim != 1:
        return np.full(len(spectra), np.nan)
    return values.astype(np.float64)


def _range(values: FloatArray) -> list[float] | None:
    values = values[np.isfinite(values)]
    return [_rounded(values.min()), _rounded(values.max())] if values.size else None


def _rounded(value: float) -> float:
    """Round to six digits, for display."""
    return float(f"{value:.6g}")
