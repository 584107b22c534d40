"""A source and a target survey of synthetic spectra, which differ in resolution and zero point."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter1d

PIXELS = 300


def survey(seed, n, blur=0.0, noise=0.002, offset=0.0):
    """Make spectra of forty lines that deepen with the label and, for half of them, a second parameter."""
    lines = np.random.default_rng(99)
    places, depths = lines.uniform(10, PIXELS - 10, 40), lines.uniform(0.02, 0.3, 40)
    rng = np.random.default_rng(seed)
    label, other = rng.uniform(-2.0, 0.5, n), rng.uniform(0.0, 1.0, n)
    strength = 10 ** (0.4 * label)[:, None] * np.where(np.arange(40) < 20, 1.0, 0.5 + other[:, None])
    shapes = np.exp(-0.5 * ((np.arange(PIXELS) - places[:, None]) / 1.5) ** 2)
    flux = np.exp(-(strength * depths) @ shapes)
    flux = gaussian_filter1d(flux, blur, axis=1) if blur else flux
    return flux + noise * rng.normal(size=flux.shape), label + offset


@pytest.fixture(scope="module")
def problem():
    """The arguments of `run_baselines` for 90 source stars, 60 target stars and two splits."""
    source = survey(1, 90)
    target = survey(2, 60, blur=4.0, offset=0.15)
    rng = np.random.default_rng(3)
    order = np.stack([rng.permutation(60) for _ in range(2)])
    return {
        "source_flux": source[0],
        "source_labels": source[1],
        "target_flux": target[0],
        "target_labels": target[1],
        "train": order[:, :20],
        "test": order[:, 25:],
    }


@pytest.fixture(scope="module")
def sharp_target():
    """Target spectra at the resolution of the source."""
    return survey(5, 30)[0]
