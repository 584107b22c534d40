import json

import numpy as np
import pytest

from specjax.calibration.scale import FREEDOM, Scale, fit_scale, with_known

RNG = np.random.default_rng(0)
PREDICTED = RNG.uniform(-2.5, 0.5, 4000)
SNR = np.exp(RNG.normal(3.0, 0.6, 4000))
TRUE = Scale(centre=-1.0, width=0.87, log_snr=3.0, log_snr_width=0.6, coefficients=(-2.3, -0.4, -0.3))
RESIDUAL = TRUE(PREDICTED, SNR) * RNG.standard_t(FREEDOM, 4000)


def test_a_trend_is_found_again():
    found = fit_scale(PREDICTED, RESIDUAL, snr=SNR)
    # A coefficient is known to sqrt(7 / 8 / 4000) = 0.015, and 2.5 times the slopes are reached at the ends.
    np.testing.assert_allclose(np.log(found(PREDICTED, SNR) / TRUE(PREDICTED, SNR)), 0, atol=0.15)


def test_label_errors_are_taken_off():
    error = RNG.choice([0.0, 0.2], 4000)
    residual = RESIDUAL + error * RNG.normal(size=4000)
    known, ignored = (fit_scale(PREDICTED, residual, snr=SNR, known=each) for each in (error, None))
    ratio = [np.median(each(PREDICTED, SNR) / TRUE(PREDICTED, SNR)) for each in (known, ignored)]
    assert ratio[0] == pytest.approx(1, abs=0.1)  # a sum of t(4) and a normal error is not t(4)
    assert ratio[1] > 1.3
    total = with_known(np.array([0.3]), np.array([0.4]))
    assert 0.4 < total[0] < 0.5
    assert with_known(total, None) is total


@pytest.mark.parametrize("n", [10, 63])
def test_few_stars_show_little_of_a_trend(n):
    """The prior holds it back, and the unit of the label does not matter."""
    rng = np.random.default_rng(n)
    predicted, residual = rng.normal(size=n), rng.normal(size=n)
    found = fit_scale(predicted, residual)
    assert abs(found.coefficients[1]) < 1
    again = fit_scale(5000 + 700 * predicted, 700 * residual)
    np.testing.assert_allclose(again(5000 + 700 * predicted), 700 * found(predicted), rtol=1e-4)


def test_is_constant_beyond_the_stars():
    found = fit_scale(PREDICTED, RESIDUAL, snr=SNR)
    far, median = np.array([-50.0, -90.0]), np.full(2, np.exp(found.log_snr))
    assert len(set(found(far, median).tolist())) == 1


def test_unknown_snr_is_the_median_one():
    found = fit_scale(PREDICTED, RESIDUAL, snr=SNR)
    values, median = np.linspace(-2, 0, 5), np.full(5, np.exp(found.log_snr))
    for unknown in (None, np.full(5, np.nan), np.zeros(5)):
        np.testing.assert_allclose(found(values, unknown), found(values, median))


@pytest.mark.parametrize("snr", [None, np.full(50, np.nan), np.full(50, 20.0)])
def test_snr_that_is_unknown_or_constant_has_no_term(snr):
    found = fit_scale(PREDICTED[:50], RESIDUAL[:50], snr=snr)
    assert len(found.coefficients) == 2


def test_no_residuals_and_no_spread_are_no_errors():
    for predicted in (np.linspace(-1, 0, 12), np.zeros(12)):
        scale = fit_scale(predicted, np.zeros(12))(predicted)
        assert (scale > 0).all()
        assert (scale < 1e-3).all()


def test_json():
    for scale in (TRUE, fit_scale(PREDICTED, RESIDUAL)):
        assert Scale.from_json(json.loads(json.dumps(scale.to_json()))) == scale
