"""Training files in the published layout, with spectra that follow two labels."""

import h5py
import numpy as np

PIXELS = {"lamost": 1462, "gaia_xp": 343}
_NAMES = {"lamost": "lamost_spectra", "gaia_xp": "gaia_spectra"}


def spectra(labels, pixels, seed, noise=0.01):
    """Flux (n, pixels) whose broad lines follow labels (n, 2) between -1 and 1."""
    shapes, rng = np.random.default_rng(pixels), np.random.default_rng(seed)
    lines = np.stack(
        [np.convolve(shapes.normal(size=pixels + 30), np.ones(31) / 31, "valid") for _ in range(4)]
    )
    a, b = labels.T
    terms = np.stack([a, b, a * b, b**2], axis=1)
    return (1 - 0.4 * terms @ lines + noise * rng.normal(size=(len(labels), pixels))).astype(np.float32)


def write(path, counts, towers=("lamost", "gaia_xp"), seed=0):
    """Write splits of {name: number of rows} and return the path."""
    with h5py.File(path, "w") as file:
        for k, (split, n) in enumerate(counts.items()):
            labels = np.random.default_rng([seed, k]).uniform(-1, 1, size=(n, 2))
            for tower in towers:
                name = _NAMES[tower] if len(towers) > 1 else "spectra"
                file[f"{split}/{name}"] = spectra(labels, PIXELS[tower], seed + k)[..., None]
            file[f"{split}/source_ids"] = 1000 * k + np.arange(n)
            file[f"{split}/teff"] = (5500 + 1500 * labels[:, 0]).astype(np.float32)
            file[f"{split}/fe_h"] = labels[:, 1].astype(np.float32)
    return path
