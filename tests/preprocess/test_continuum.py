import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.polynomial import chebyshev
from scipy.signal import medfilt, savgol_filter

from specjax.preprocess.continuum import fit_continuum, median_filter, normalise
from specjax.spectra import Spectra

GRID = np.arange(3600.0, 5800.0, 0.9)
LAMOST = 10 ** (3.5682 + 1e-4 * np.arange(2200))  # 3700 to 6140 A, as the files have it
DESI = 3600 + 0.8 * np.arange(3200)


def star(grid=GRID, slope=1.0, lines=40, seed=0):
    """A smooth continuum with Gaussian absorption lines, and that continuum."""
    rng = np.random.default_rng(seed)
    x = (grid - 4700) / 1000
    continuum = 1.0 + 0.3 * slope * x - 0.2 * x**2
    centre, depth = rng.uniform(3700, 5700, lines), rng.uniform(0.1, 0.6, lines)
    absorbed = (depth * np.exp(-0.5 * ((grid[:, None] - centre) / 2.0) ** 2)).sum(axis=1)
    return continuum * np.exp(-absorbed), continuum


def spectra(flux, grid=GRID, **more):
    return Spectra.build(grid, flux, **more)


def published(wavelength, flux):
    """Compute the published continuum of one spectrum from 3700 to 5700 A, following its description."""
    inside = (wavelength >= 3700) & (wavelength <= 5700)
    x, y = wavelength[inside], medfilt(flux, 7)[inside]
    y = savgol_filter(y, 3, 2, mode="nearest")

    def fit():
        return np.polyval(np.polyfit(x, y, 5), x)

    if x[fit().argmax()] < 4500:
        for low, high in ((4030, 4160), (4270, 4410), (4800, 4940)):
            ends = [y[np.abs(x - end) <= 10].max() for end in (low, high)]
            between = (x >= low) & (x <= high)
            y[between] = np.interp(x[between], [low, high], ends)
    for _ in range(10):
        y = np.maximum(fit(), y)
    return fit()


@pytest.mark.parametrize("grid", [LAMOST, LAMOST[40:], DESI], ids=["lamost", "lamost-late", "desi"])
@pytest.mark.parametrize("slope", [-1.5, 1.0], ids=["hot", "cool"])  # with and without bridged Balmer lines
def test_the_published_continuum_is_reproduced(grid, slope):
    flux = np.stack([star(grid, slope=slope, seed=seed)[0] for seed in range(3)])
    flux *= 1 + 0.03 * np.random.default_rng(1).normal(size=flux.shape)
    result = normalise(spectra(flux, grid))
    assert not result.mask.any()
    inside = (grid >= 3700) & (grid <= 5700)
    for row in range(3):
        expected = flux[row, inside] / published(grid, flux[row])
        # The powers of wavelength used there lose ten digits over 12 fits; Chebyshev polynomials do not.
        np.testing.assert_allclose(result.flux[row], expected, rtol=0, atol=1e-6)


def continuum_of_one(wavelength, flux, valid):
    """Fit one spectrum with masked pixels, within 3700-5700 A, as `published` but with loops over pixels."""
    first, last = np.flatnonzero(valid)[[0, -1]]
    y = np.zeros_like(flux)
    for pixel in range(first, last + 1):
        near = [k for k in range(pixel - 3, pixel + 4) if not first <= k <= last or valid[k]]
        y[pixel] = np.median([flux[k] if first <= k <= last else 0.0 for k in near] or [0.0])
    x = (wavelength - 4700) / 1000

    def fit():
        return chebyshev.chebval(x, chebyshev.chebfit(x[valid], y[valid], 5))

    if wavelength[valid][fit()[valid].argmax()] < 4500:
        for low, high in ((4030, 4160), (4270, 4410), (4800, 4940)):
            ends = [y[valid & (np.abs(wavelength - end) <= 10)] for end in (low, high)]
            if all(end.size for end in ends):
                between = (wavelength >= low) & (wavelength <= high)
                y[between] = np.interp(wavelength[between], [low, high], [end.max() for end in ends])
    for _ in range(10):
        y = np.maximum(fit(), y)
    return fit()


@pytest.mark.parametrize("own", [False, True], ids=["shared grid", "own grids"])
def test_a_batch_with_masks_equals_each_spectrum_alone(own):
    rng = np.random.default_rng(3)
    grid = np.arange(3700.0, 5699.0, 1.7)
    wavelength = grid + (rng.uniform(0, 0.8, (40, 1)) if own else np.zeros((40, 1)))
    flux = np.stack([star(row, slope)[0] for row, slope in zip(wavelength, rng.normal(size=40), strict=True)])
    flux *= 1 + rng.uniform(0.01, 0.3, (40, 1)) * rng.normal(size=flux.shape)
    mask = rng.random(flux.shape) < rng.choice([0.0, 0.01, 0.1, 0.5], (40, 1))
    mask[::4, 300:360], mask[1::4, :20], mask[2::4, -7:] = True, True, True
    result = normalise(spectra(np.where(mask, np.nan, flux), wavelength if own else grid, mask=mask))
    for row in range(40):
        one = continuum_of_one(wavelength[row], flux[row], ~mask[row])
        good = ~result.mask[row]
        np.testing.assert_array_equal(good, ~mask[row] & (one > 0))
        # The normal equations here have condition numbers up to 1e4; `chebfit` does without them.
        expected = flux[row, good] / one[good]
        np.testing.assert_allclose(result.flux[row, good], expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("own", [False, True], ids=["shared grid", "own grids"])
def test_rows_do_not_depend_on_other_rows(own):
    rng = np.random.default_rng(4)
    wavelength = GRID + rng.uniform(-150, 150, (40, 1)) if own else GRID
    flux = np.stack([star(slope=slope)[0] for slope in rng.normal(size=40)])
    flux *= 1 + 0.1 * rng.normal(size=flux.shape)
    mask = rng.random(flux.shape) < 0.05
    mask[3], mask[5, 100:] = True, True
    many = spectra(flux, wavelength, ivar=rng.uniform(1, 2, flux.shape), mask=mask)
    together = normalise(many)
    for row in range(40):
        alone = normalise(many[row])
        columns = slice(None)
        if own:  # the columns of the batch are those in which any grid is in the range
            columns = np.isin(together.wavelength[row], alone.wavelength[0])
            assert together.mask[row, ~columns].all()
        np.testing.assert_array_equal(together.mask[row, columns], alone.mask[0])
        # Sums in another order; the condition numbers of the normal equations are about 100.
        np.testing.assert_allclose(together.flux[row, columns], alone.flux[0], rtol=1e-12, atol=1e-13)
        assert together.meta["flag"][row] == alone.meta["flag"][0]


def test_only_hot_stars_have_their_balmer_lines_bridged():
    """The two slopes above rely on this."""
    for slope, hot in ((-1.5, True), (1.0, False)):
        flux, _ = star(LAMOST, slope=slope)
        y = medfilt(flux, 7)[(LAMOST >= 3700) & (LAMOST <= 5700)]
        x = LAMOST[(LAMOST >= 3700) & (LAMOST <= 5700)]
        assert (x[np.polyval(np.polyfit(x, y, 5), x).argmax()] < 4500) == hot


def test_the_continuum_of_a_line_spectrum_is_recovered():
    flux, continuum = star()
    inside = (GRID > 3800) & (GRID < 5600)
    found = fit_continuum(GRID, flux[None], np.ones((1, GRID.size), bool))[0]
    # For lines this deep the upper envelope is within 2% of the truth away from the ends.
    np.testing.assert_allclose(found[inside], continuum[inside], rtol=0.02)
    assert np.isnan(found[(GRID < 3700) | (GRID > 5700)]).all()


def test_a_quintic_without_lines_is_its_own_continuum():
    x = (GRID - 4700) / 1000
    flux = 2 + 0.3 * x - 0.2 * x**3 + 0.1 * x**5
    result = normalise(spectra(flux))
    # 1e-5 for the running median of a curve and the envelope of rounding errors.
    np.testing.assert_allclose(result.flux[~result.mask], 1.0, rtol=1e-5)


@settings(max_examples=25, deadline=None)  # the first fit loads LAPACK
@given(exponent=st.floats(-20, 20), seed=st.integers(0, 1000), masked=st.floats(0, 0.3))
def test_normalisation_does_not_depend_on_the_scale_of_the_flux(exponent, seed, masked):
    scale = 10.0**exponent
    flux, mask = star(seed=seed)[0], np.random.default_rng(seed).random((1, GRID.size)) < masked
    reference, scaled = (
        normalise(spectra(flux * factor, ivar=np.full((1, GRID.size), 100.0 / factor**2), mask=mask))
        for factor in (1.0, scale)
    )
    np.testing.assert_array_equal(scaled.mask, reference.mask)
    np.testing.assert_allclose(scaled.flux, reference.flux, rtol=1e-10)  # ten solutions of a 6x6 system
    np.testing.assert_allclose(scaled.ivar, reference.ivar, rtol=1e-10)


@pytest.mark.parametrize("how", ["mask", "ivar"])
def test_masked_pixels_do_not_affect_others(how):
    flux, _ = star()
    bad = np.zeros(GRID.size, bool)
    bad[[300, 301, 302, 303, 900, 1500]] = True
    kept = {"mask": bad[None]} if how == "mask" else {"ivar": np.where(bad, 0.0, 1.0)[None]}
    results = [normalise(spectra(np.where(bad, value, flux), **kept)) for value in (0.0, 1e4, -1e4)]
    for result in results[1:]:
        np.testing.assert_array_equal(result.flux, results[0].flux)
        np.testing.assert_array_equal(result.mask, results[0].mask)
    assert results[0].flux.max() < 1.2  # a masked 1e4 would raise the flux far above


def test_rows_do_not_depend_on_other_rows_or_on_sharing_a_grid():
    flux = np.stack([star(slope=s, seed=s)[0] for s in range(3)])
    together = normalise(spectra(flux))
    own = normalise(spectra(flux, np.stack([GRID, GRID, GRID])))
    for row in range(3):
        alone = normalise(spectra(flux[row]))
        np.testing.assert_allclose(together.flux[row], alone.flux[0], rtol=1e-12)  # order of summation
        np.testing.assert_allclose(own.flux[row], alone.flux[0], rtol=1e-12)


def test_ranges_are_found_by_wavelength_wherever_the_spectrum_starts():
    """In the published code the Balmer ranges are 100 A off for spectra that start at 3600 A."""
    flux = 3.0 - (GRID - 3600) / 1200
    for centre in (4101.7, 4340.5, 4861.3):
        flux = flux * (1 - 0.5 * np.exp(-0.5 * ((GRID - centre) / 15.0) ** 2))
    early = normalise(spectra(flux))
    late = normalise(spectra(flux[GRID > 3689], GRID[GRID > 3689]))
    common = np.isin(early.wavelength, late.wavelength)
    np.testing.assert_allclose(early.flux[:, common], late.flux, rtol=1e-12)
    core = np.abs(early.wavelength - 4340.5) < 1
    np.testing.assert_allclose(early.flux[0, core], 0.5, atol=0.05)  # bridged, so the line keeps its depth


@pytest.mark.parametrize("low", [4000.0, 4500.0])
def test_spectra_that_cover_part_of_the_range_are_fitted(low):
    flux, continuum = star()
    part = low < GRID
    result = normalise(spectra(flux[part], GRID[part]))
    assert result.meta["flag"].tolist() == ["good"]
    away = (result.wavelength > low + 50) & (result.wavelength < 5600)
    expected = (flux / continuum)[np.isin(GRID, result.wavelength[away])]
    np.testing.assert_allclose(result.flux[0, away], expected, rtol=0.03)  # fewer pixels constrain the fit


def test_rows_that_cannot_be_fitted_are_flagged_and_masked():
    flux = np.stack([star()[0]] * 4)
    mask = np.zeros(flux.shape, bool)
    mask[1, GRID > 3900] = True  # 200 A left
    flux[2] = -1.0
    mask[3] = True
    result = normalise(spectra(flux, mask=mask))
    assert result.meta["flag"].tolist() == [
        "good",
        "continuum_failed",
        "continuum_failed",
        "continuum_failed",
    ]
    assert result.mask[1:].all()
    assert (result.ivar[1:] == 0).all()


def test_spectra_outside_the_range_are_flagged_not_refused():
    infrared = np.linspace(15000.0, 17000.0, 500)
    result = normalise(spectra(np.ones((2, 500)), infrared))
    assert result.meta["flag"].tolist() == ["continuum_failed"] * 2
    assert result.mask.all()


@settings(max_examples=50, deadline=None)
@given(valid=st.lists(st.booleans(), min_size=1, max_size=40), seed=st.integers(0, 100))
def test_the_median_filter_leaves_out_any_pattern_of_pixels(valid, seed):
    valid = np.array([valid, [True] * len(valid), valid[::-1]])
    flux = np.random.default_rng(seed).integers(-3, 4, valid.shape).astype(float)  # with equal values
    got = median_filter(np.where(valid, flux, 1e30), valid)
    for row, use in enumerate(valid):
        inside = np.logical_or.accumulate(use) & np.logical_or.accumulate(use[::-1])[::-1]
        counted = np.pad(use | ~inside, 3, constant_values=True)
        padded = np.pad(np.where(inside, flux[row], 0.0), 3)
        for pixel in range(use.size):
            seen = padded[pixel : pixel + 7][counted[pixel : pixel + 7]]
            assert got[row, pixel] == (np.median(seen) if inside[pixel] and seen.size else 0.0)


def test_median_filter_uses_valid_pixels_and_zeros_beyond_the_ends():
    rng = np.random.default_rng(0)
    flux, valid = rng.normal(size=(4, 30)), rng.random((4, 30)) > 0.4
    valid[1, 10:20] = False
    valid[2] = True
    valid[3] = False
    got = median_filter(flux, valid)
    for row in range(3):
        first, last = np.flatnonzero(valid[row])[[0, -1]]
        for pixel in range(first, last + 1):
            window = range(pixel - 3, pixel + 4)
            seen = [
                0.0 if k < first or k > last else flux[row, k]
                for k in window
                if not first <= k <= last or valid[row, k]
            ]
            assert got[row, pixel] == (np.median(seen) if seen else 0.0)
    np.testing.assert_array_equal(got[2], medfilt(flux[2], 7))
    assert (got[3] == 0).all()
