import numpy as np

from experiments.spectral_kernels import bandpass, principal_components


def test_bandpass_removes_a_slow_continuum_and_keeps_a_constant():
    x = np.linspace(-1.0, 1.0, 1000)
    slow = 1.0 + 0.1 * x[None]
    flat = bandpass(slow, 0.0, 30.0)
    # The slope is removed except at the edges, where the running mean is one-sided.
    np.testing.assert_allclose(flat[:, 100:-100], 1.0, atol=1e-12)
    np.testing.assert_allclose(bandpass(np.full((2, 50), 3.0), 2.0, 10.0), 1.0, rtol=1e-14)


def test_components_agree_with_the_singular_value_decomposition():
    spectra = np.random.default_rng(0).normal(size=(12, 30))
    mean, axes, scale = principal_components(spectra, 5)
    _, s, v = np.linalg.svd(spectra - spectra.mean(axis=0), full_matrices=False)
    np.testing.assert_allclose(mean, spectra.mean(axis=0))
    np.testing.assert_allclose(scale, s[:5] / np.sqrt(12), rtol=1e-10)
    np.testing.assert_allclose(np.abs(np.sum(axes * v[:5], axis=1)), 1.0, rtol=1e-10)  # signs are free
