from dataclasses import replace

import numpy as np
import pytest
import spectres
from hypothesis import given, settings
from hypothesis import strategies as st

from specjax.errors import DataError
from specjax.preprocess.operators import pixel_edges
from specjax.preprocess.resample import crop, interpolate, rebin, rows_by_grid, smooth
from specjax.spectra import Spectra
from specjax.wavelength import LAMOST_WAVELENGTH

GRID = np.arange(3950.0, 5650.0, 0.8)
COARSE = np.arange(4000.0, 5600.0, 3.1)
ROUNDING = 1e-12  # sums of a few thousand float64


def spectra(flux, grid=GRID, **more):
    return Spectra.build(grid, flux, unit="angstrom", **more)


def wiggles(n=3, grid=GRID, seed=0):
    return np.random.default_rng(seed).normal(1, 0.3, (n, grid.size))


@st.composite
def grids(draw):
    """Draw an uneven increasing grid within 4000-5600 A, without steps that count as a gap."""
    steps = draw(st.lists(st.floats(4.1, 20.0), min_size=3, max_size=60))
    return 4000.0 + np.cumsum(steps)


@settings(max_examples=50, deadline=None)  # a new operator is built for every grid
@given(source=grids(), target=grids(), seed=st.integers(0, 100))
def test_rebinning_conserves_flux_where_fully_covered(source, target, seed):
    low, high = pixel_edges(source)[[0, -1]]
    edges = pixel_edges(target)
    inside = (edges[:-1] >= low) & (edges[1:] <= high)
    flux = np.random.default_rng(seed).normal(1, 0.3, (1, source.size))
    result = rebin(spectra(flux, source), target)
    assert not result.mask[:, inside].any()
    # The cumulative integral of the source at the edges of each output pixel.
    integral = np.concatenate([[0], np.cumsum(flux[0] * np.diff(pixel_edges(source)))])
    at = np.interp(edges, pixel_edges(source), integral)
    expected = np.diff(at) / np.diff(edges)
    np.testing.assert_allclose(
        result.flux[0, inside], expected[inside], rtol=0, atol=1e-9
    )  # differences of sums


@settings(max_examples=30, deadline=None)
@given(source=grids(), target=grids(), seed=st.integers(0, 100), factor=st.floats(-10, 10))
@pytest.mark.parametrize("change", [rebin, interpolate])
def test_resampling_is_linear(change, source, target, seed, factor):
    a, b = wiggles(grid=source, seed=seed), wiggles(grid=source, seed=seed + 1000)
    both = change(spectra(factor * a + b, source), target)
    parts = [change(spectra(flux, source), target) for flux in (a, b)]
    np.testing.assert_array_equal(both.mask, parts[0].mask)
    np.testing.assert_allclose(both.flux, factor * parts[0].flux + parts[1].flux, rtol=0, atol=20 * ROUNDING)


@settings(max_examples=30, deadline=None)
@given(grid=grids(), seed=st.integers(0, 100), masked=st.floats(0, 0.5))
@pytest.mark.parametrize("change", [rebin, interpolate])
def test_resampling_to_the_same_grid_is_the_identity(change, grid, seed, masked):
    flux, ivar = wiggles(grid=grid, seed=seed), np.random.default_rng(seed).uniform(1, 5, (3, grid.size))
    mask = np.random.default_rng(seed).random(flux.shape) < masked
    same = change(spectra(flux, grid, ivar=ivar, mask=mask), grid)
    np.testing.assert_array_equal(same.mask, mask)
    np.testing.assert_allclose(same.flux[~mask], flux[~mask], rtol=ROUNDING)
    np.testing.assert_allclose(same.ivar[~mask], ivar[~mask], rtol=ROUNDING)


@pytest.mark.parametrize(
    "target", [LAMOST_WAVELENGTH, COARSE, GRID[5:-5] + 0.3], ids=["lamost", "coarse", "shifted"]
)
def test_rebinning_without_masks_equals_spectres(target):
    flux = wiggles(8)
    result = rebin(spectra(flux), target)
    assert not result.mask.any()
    np.testing.assert_allclose(result.flux, spectres.spectres(target, GRID, flux), rtol=ROUNDING)


@pytest.mark.parametrize(
    "change",
    [
        lambda s: rebin(s, LAMOST_WAVELENGTH),
        lambda s: interpolate(s, LAMOST_WAVELENGTH),
        lambda s: smooth(s, 3.0, 24.0),
        lambda s: smooth(s, 3.0, 24.0, LAMOST_WAVELENGTH),
    ],
)
@pytest.mark.parametrize("how", ["mask", "ivar", "nan"])
def test_masked_pixels_do_not_affect_others(change, how):
    flux = np.ones((1, GRID.size))
    flux[0, [700, 701, 702, 1200]] = np.nan if how == "nan" else 1e4
    bad = flux[0] != 1
    ivar = np.where(bad, 0.0, 1.0)[None] if how == "ivar" else np.ones_like(flux)
    result = change(spectra(flux, ivar=ivar, mask=bad[None] if how == "mask" else None))
    np.testing.assert_allclose(result.flux[~result.mask], 1.0, rtol=ROUNDING)
    assert (result.flux[result.mask] == 0).all()
    assert (result.ivar[result.mask] == 0).all()


@pytest.mark.parametrize("change", [rebin, interpolate])
def test_output_without_support_is_masked(change):
    mask = np.zeros((1, GRID.size), bool)
    mask[0, (GRID > 4500) & (GRID < 4600)] = True
    wide = np.arange(3800.0, 5800.0, 2.0)
    result = change(spectra(wiggles(1), mask=mask), wide)
    edge = 2.0  # a pixel of the output
    outside = (
        (wide < GRID[0] - edge) | (wide > GRID[-1] + edge) | ((wide > 4500 + edge) & (wide < 4600 - edge))
    )
    inside = ((wide > GRID[0] + edge) & (wide < 4500 - edge)) | (
        (wide > 4600 + edge) & (wide < GRID[-1] - edge)
    )
    assert result.mask[0, outside].all()
    assert not result.mask[0, inside].any()


@pytest.mark.parametrize("change", [rebin, lambda s, grid: smooth(s, 2.0, 6.0, grid)])
def test_ivar_equals_the_scatter_of_many_realisations(change):
    rng = np.random.default_rng(3)
    noise = rng.normal(0, 0.5, (4000, GRID[:300].size))
    result = change(spectra(noise, GRID[:300], ivar=np.full(noise.shape, 4.0)), GRID[10:290:5] + 0.3)
    # The variance of 4000 draws has an error of sqrt(2/4000) = 2%; five times that for 56 pixels.
    np.testing.assert_allclose(result.flux.var(axis=0) * result.ivar[0], 1.0, atol=0.11)


def test_placeholder_ivar_stays_a_placeholder():
    result = rebin(spectra(wiggles()), COARSE)
    assert not result.has_ivar
    assert set(np.unique(result.ivar)) == {1.0}


def rebin_slowly(wavelength, flux, ivar, valid, target):
    """Rebin one spectrum pixel by pixel; masked output is NaN."""
    edges, bounds = pixel_edges(wavelength), pixel_edges(target)
    mean, inverse = np.full(target.size, np.nan), np.full(target.size, np.nan)
    for pixel in range(target.size):
        low, high = np.maximum(edges[:-1], bounds[pixel]), np.minimum(edges[1:], bounds[pixel + 1])
        width = np.where(valid, np.maximum(high - low, 0), 0)
        if width.sum() >= 0.5 * (bounds[pixel + 1] - bounds[pixel]):
            mean[pixel] = (width * flux).sum() / width.sum()
            inverse[pixel] = width.sum() ** 2 / (width[valid] ** 2 / ivar[valid]).sum()
    return mean, inverse


@settings(max_examples=25, deadline=None)  # new operators are built for every example
@given(data=st.data(), seed=st.integers(0, 100), masked=st.floats(0, 0.7), own=st.booleans())
def test_rebinning_equals_that_of_one_pixel_after_the_other(data, seed, masked, own):
    rng = np.random.default_rng(seed)
    source, target = data.draw(grids()), data.draw(grids())
    grid = source + rng.uniform(-50, 50, (3, 1)) if own else source
    flux, ivar = wiggles(grid=source, seed=seed), rng.uniform(1, 5, (3, source.size))
    ivar[rng.random(ivar.shape) < 0.1] = 0.0
    some = spectra(flux, grid, ivar=ivar, mask=rng.random(flux.shape) < masked)
    result = rebin(some, target)
    for row in range(3):
        wavelength = grid[row] if own else some.wavelength
        args = (some.flux[row], some.ivar[row], some.valid[row])
        mean, inverse = rebin_slowly(wavelength, *args, target)
        np.testing.assert_array_equal(result.mask[row], np.isnan(mean))
        good = ~result.mask[row]
        np.testing.assert_allclose(result.flux[row, good], mean[good], rtol=ROUNDING, atol=ROUNDING)
        np.testing.assert_allclose(result.ivar[row, good], inverse[good], rtol=ROUNDING)


@pytest.mark.parametrize(
    "change",
    [
        lambda s: rebin(s, LAMOST_WAVELENGTH),
        lambda s: interpolate(s, LAMOST_WAVELENGTH),
        lambda s: smooth(s, 3.0, 12.0),
        lambda s: smooth(s, 3.0, np.linspace(5.0, 12.0, COARSE.size), COARSE),
    ],
    ids=["rebin", "interpolate", "smooth", "smooth to a grid"],
)
def test_rows_on_different_grids_equal_single_rows(change):
    """Some rows share a grid; the others have uneven grids, which begin far from each other."""
    rng = np.random.default_rng(1)
    grid = 3800 + rng.uniform(0, 300, (100, 1)) + np.cumsum(rng.uniform(0.3, 1.3, (100, GRID.size)), axis=1)
    grid[5:40:3], grid[50:70], grid[80:83] = grid[5], grid[50], grid[80]
    mask = rng.random(grid.shape) < 0.1
    ivar = rng.uniform(1, 5, grid.shape)
    many = spectra(wiggles(100), grid, ivar=ivar, mask=mask)
    together = change(many)
    for row in range(100):
        alone = change(replace(many[row], wavelength=grid[row]))
        np.testing.assert_array_equal(together.mask[row], alone.mask[0])
        np.testing.assert_allclose(together.flux[row], alone.flux[0], rtol=ROUNDING, atol=ROUNDING)
        np.testing.assert_allclose(together.ivar[row], alone.ivar[0], rtol=ROUNDING)


def test_rows_are_grouped_by_grid():
    grid = np.stack([GRID, GRID + 1.0, GRID + 2.0])[[0, 1, 0, 2, 0, 0, 0, 0, 0, 0, 1]]
    grid[9, 77] += 1e-9  # almost the same grid, except in one pixel
    batches = rows_by_grid(grid, len(grid), 3)
    rows = np.concatenate([np.arange(len(grid))[batch] for _, batch in batches])
    assert sorted(rows.tolist()) == list(range(len(grid)))
    for own, batch in batches:
        np.testing.assert_array_equal(np.broadcast_to(own, grid[batch].shape), grid[batch])
        assert own.ndim == 2 or len(own) == GRID.size
    grid[9] = GRID
    shared = [batch for own, batch in rows_by_grid(grid, len(grid), 100) if own.ndim == 1]
    assert [batch.tolist() for batch in shared] == [[0, 2, 4, 5, 6, 7, 8, 9]]


def test_smoothing_reaches_the_requested_width():
    grid = np.arange(4900.0, 5100.0, 0.5)
    sigma = 3.0 / 2.354820045
    line = np.exp(-0.5 * ((grid - 5000) / sigma) ** 2)[None]
    wide = smooth(spectra(line, grid), 3.0, 24.0).flux[0]
    moment = np.sqrt(np.sum(wide * (grid - 5000) ** 2) / wide.sum()) * 2.354820045
    np.testing.assert_allclose(moment, 24.0, rtol=5e-3)  # the kernel is truncated at 4 sigma


def test_smoothing_only_lowers_the_resolution():
    some = spectra(wiggles())
    assert smooth(some, 3.0, 3.0) is some
    with pytest.raises(DataError, match="cannot raise"):
        smooth(some, 3.0, 2.0)


def test_smoothing_below_a_pixel_is_the_identity_and_does_not_extrapolate():
    some = spectra(wiggles())
    np.testing.assert_allclose(smooth(some, 0.0, 0.05).flux, some.flux, rtol=ROUNDING)
    beyond = smooth(some, 3.0, 24.0, np.array([3930.0, 3949.0, 3960.0, 5660.0]))
    assert beyond.mask[0].tolist() == [True, True, False, True]


def test_crop_selects_the_columns_of_a_range():
    part = crop(spectra(wiggles()), 4500, 4600)
    assert part.wavelength[0] >= 4500
    assert part.wavelength[-1] <= 4600
    with pytest.raises(DataError, match="no spectrum has pixels"):
        crop(part, 8000, 9000)
