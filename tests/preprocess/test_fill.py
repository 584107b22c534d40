import numpy as np
import pytest

from specjax.errors import DataError
from specjax.preprocess.fill import PrincipalFill

RANK, PIXELS = 4, 200


def low_rank(n, seed=0, noise=0.01):
    basis = np.random.default_rng(42).normal(size=(RANK, PIXELS))
    rng = np.random.default_rng(seed)
    return 1 + 0.1 * rng.normal(size=(n, RANK)) @ basis + noise * rng.normal(size=(n, PIXELS))


def gap(n, low=60, high=120):
    mask = np.zeros((n, PIXELS), bool)
    mask[:, low:high] = True
    return mask


def rms(values):
    return float(np.sqrt(np.mean(values**2)))


@pytest.mark.parametrize("n", [60, 400])  # fewer or more spectra than pixels, for both Gram matrices
def test_a_gap_is_filled_to_the_noise_and_much_better_than_with_the_mean(n):
    model = PrincipalFill.fit(low_rank(n), np.zeros((n, PIXELS), bool), k=RANK)
    truth, mask = low_rank(50, seed=1), gap(50)
    error = (model.apply(truth, None, mask) - truth)[mask]
    assert rms(error) < 0.015  # noise 0.01 and the error of the coefficients
    assert rms((model.mean - truth)[mask]) > 5 * rms(error)


def test_the_fit_handles_gaps():
    flux = low_rank(300)
    mask = np.random.default_rng(5).random(flux.shape) < 0.2
    mask[:60, :70] = True
    model = PrincipalFill.fit(np.where(mask, 1e4, flux), mask, k=RANK)
    truth, held = low_rank(50, seed=2), gap(50)
    assert rms((model.apply(truth, None, held) - truth)[held]) < 0.02


@pytest.mark.parametrize("with_ivar", [False, True])
def test_unmasked_pixels_stay_bit_identical(with_ivar):
    model = PrincipalFill.fit(low_rank(100), np.zeros((100, PIXELS), bool), k=RANK)
    flux, mask = low_rank(20, seed=3), gap(20)
    mask[5:] = False
    before = flux.copy()
    filled = model.apply(flux, np.full(flux.shape, 1e4) if with_ivar else None, mask)
    np.testing.assert_array_equal(filled[~mask], flux[~mask])
    np.testing.assert_array_equal(flux, before)
    assert (filled[mask] != flux[mask]).all()


def test_masked_values_have_no_influence():
    model = PrincipalFill.fit(low_rank(100), np.zeros((100, PIXELS), bool), k=RANK)
    flux, mask = low_rank(5, seed=4), gap(5)
    a = model.apply(np.where(mask, 1e4, flux), None, mask)
    np.testing.assert_array_equal(a, model.apply(flux, None, mask))


def test_a_row_without_valid_pixels_becomes_the_mean():
    model = PrincipalFill.fit(low_rank(100), np.zeros((100, PIXELS), bool), k=RANK)
    everything = np.ones((1, PIXELS), bool)
    np.testing.assert_allclose(
        model.apply(np.zeros((1, PIXELS)), None, everything)[0], model.mean, rtol=1e-12
    )


def fill_one(model, flux, ivar, mask):
    """Fill one spectrum (p,) by ridge regression on its unmasked pixels."""
    use, floor = ~mask, model.noise**2
    precision = np.full(use.sum(), 1 / floor) if ivar is None else 1 / (1 / ivar[use] + floor)
    basis = model.components[:, use]
    normal = (basis * precision) @ basis.T + np.diag(1 / model.variance)
    coefficients = np.linalg.solve(normal, (basis * precision) @ (flux - model.mean)[use])
    return np.where(mask, model.mean + coefficients @ model.components, flux)


@pytest.mark.parametrize("with_ivar", [False, True])
def test_a_batch_is_filled_as_each_spectrum_alone(with_ivar):
    model = PrincipalFill.fit(low_rank(100), np.zeros((100, PIXELS), bool), k=RANK)
    rng = np.random.default_rng(7)
    flux, ivar = low_rank(300, seed=8), rng.uniform(1e2, 1e4, (300, PIXELS))  # more than one batch of rows
    mask = rng.random(flux.shape) < rng.choice([0.0, 0.1, 0.9], (300, 1))
    mask[10:20, 50:150], mask[30] = True, True
    filled = model.apply(np.where(mask, np.nan, flux), ivar if with_ivar else None, mask)
    for row in range(300):
        expected = fill_one(model, flux[row], ivar[row] if with_ivar else None, mask[row])
        # Normal equations whose condition number is up to 1e3.
        np.testing.assert_allclose(filled[row], expected, rtol=1e-12)


def test_filling_from_uncertain_flux_shrinks_towards_the_mean():
    model = PrincipalFill.fit(low_rank(100), np.zeros((100, PIXELS), bool), k=RANK)
    flux, mask = low_rank(20, seed=5), gap(20)
    sure, unsure = (model.apply(flux, np.full(flux.shape, ivar), mask) - model.mean for ivar in (1e6, 1.0))
    assert rms(unsure[mask]) < rms(sure[mask])


def test_arrays_round_trip(tmp_path):
    model = PrincipalFill.fit(low_rank(100), np.zeros((100, PIXELS), bool), k=RANK)
    np.savez(tmp_path / "fill.npz", **model.to_arrays())
    again = PrincipalFill.from_arrays(np.load(tmp_path / "fill.npz"))
    flux, mask = low_rank(5, seed=6), gap(5)
    np.testing.assert_array_equal(again.apply(flux, None, mask), model.apply(flux, None, mask))
    with pytest.raises(DataError, match="no array"):
        PrincipalFill.from_arrays({"mean": model.mean})


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(DataError, match=r"\(3, 4\) and mask \(3, 5\)"):
        PrincipalFill.fit(np.ones((3, 4)), np.ones((3, 5), bool))
    with pytest.raises(DataError, match="at least two"):
        PrincipalFill.fit(np.ones((3, 4)), np.ones((3, 4), bool))
    model = PrincipalFill.fit(low_rank(100), np.zeros((100, PIXELS), bool), k=RANK)
    with pytest.raises(DataError, match="do not fit 200 pixels"):
        model.apply(np.ones((1, 4)), None, np.ones((1, 4), bool))
