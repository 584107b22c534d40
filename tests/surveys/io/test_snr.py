import numpy as np

from specjax.surveys.io.snr import median_snr


def test_it_is_the_median_of_the_good_pixels():
    random = np.random.default_rng(0)
    flux, ivar = random.normal(1.0, 0.3, (600, 31)), random.uniform(1.0, 100.0, (600, 31))
    good = random.random(flux.shape) < random.random((600, 1))  # even and odd numbers of them, and none
    good[5], good[6] = False, True
    ivar[7, 3] = -1.0  # has no square root
    good[7] = True
    with np.errstate(invalid="ignore"):
        ratio = flux * np.sqrt(ivar)
        found = median_snr(flux, ivar, good)
    expected = [np.nanmedian(row[use]) if use.any() else np.nan for row, use in zip(ratio, good, strict=True)]
    np.testing.assert_array_equal(found, expected)
    assert np.isnan(found[5])
