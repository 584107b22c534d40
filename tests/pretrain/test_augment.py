import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from specjax.errors import ConfigError
from specjax.pretrain.augment import AugmentConfig, augment, extend_blue, mix, smooth_and_shift
from tests.synthetic import NOTHING

pytestmark = pytest.mark.usefixtures("quick_compilation")

PIXELS = 1462
run = jax.jit(augment, static_argnums=2)
move = jax.jit(smooth_and_shift)


def only(**changes):
    return dataclasses.replace(NOTHING, **changes)


def spectra(n=3, seed=0):
    """Smooth spectra with absorption lines a few pixels wide."""
    rng = np.random.default_rng(seed)
    pixel = np.arange(PIXELS)
    lines = [
        np.exp(-0.5 * ((pixel - rng.uniform(60, 1400, (n, 1))) / rng.uniform(2, 5)) ** 2) for _ in range(40)
    ]
    return jnp.asarray(np.exp(-0.3 * sum(lines)), jnp.float32)


def column(*values):
    return jnp.asarray(values, jnp.float32)[:, None]


class TestSmoothAndShift:
    def test_a_constant_stays_constant(self):
        flux = jnp.asarray([[1.0], [0.3], [7.0]]) * jnp.ones((3, PIXELS))
        out = move(flux, column(0.3, 2.5, 12.0), column(-1.5, 0.0, 1.4))
        # A Fourier transform of 1600 float32 numbers: a few roundings of the value.
        np.testing.assert_allclose(out, flux, rtol=2e-6)

    def test_zero_width_and_shift_are_the_identity(self):
        flux = spectra()
        np.testing.assert_allclose(
            move(flux, column(0, 0, 0), column(0, 0, 0)), flux, atol=2e-6
        )  # float32 FFT

    @pytest.mark.parametrize("shift", [-7, -1, 1, 20])
    def test_whole_pixels_move_lines_to_the_red(self, shift):
        flux = spectra()
        out = np.asarray(move(flux, column(0, 0, 0), column(shift, shift, shift)))
        inside = slice(30, PIXELS - 30)  # no line moves in from beyond the ends
        np.testing.assert_allclose(out[:, inside], np.roll(flux, shift, axis=1)[:, inside], atol=2e-6)

    def test_fractions_of_a_pixel_shift_lines(self):
        pixel = np.arange(PIXELS)
        line = lambda at: 1 - 0.5 * np.exp(-0.5 * ((pixel - at) / 3) ** 2)  # noqa: E731
        flux = jnp.asarray(np.stack([line(700), line(300)]), jnp.float32)
        out = move(flux, column(0, 0), column(0.4, -1.25))
        expected = np.stack([line(700.4), line(298.75)])
        np.testing.assert_allclose(out, expected, atol=2e-6)  # sampled far above its bandwidth: float32 only

    def test_smoothing_is_a_convolution_with_a_gaussian_of_the_given_width(self):
        pixel, narrow, widths = np.arange(PIXELS), 2.0, (0.7, 2.5, 12.0)
        flux = jnp.asarray(np.tile(np.exp(-0.5 * ((pixel - 700) / narrow) ** 2), (3, 1)), jnp.float32)
        out = np.asarray(move(flux, column(*widths), column(0, 0, 0)))
        for row, width in zip(out, widths, strict=True):
            total = np.hypot(narrow, width)  # variances add, the area stays
            expected = narrow / total * np.exp(-0.5 * ((pixel - 700) / total) ** 2)
            np.testing.assert_allclose(row, expected, atol=3e-6)  # float32 FFT

    def test_the_ends_do_not_affect_each_other(self):
        """Without the padding a Fourier transform would smooth across the ends."""
        flux = jnp.asarray(np.linspace(0.5, 1.5, PIXELS)[None], jnp.float32)
        out = move(flux, column(5.0), column(0.0))
        # Repeating the end value changes a slope of 7e-4 per pixel by less than sigma times that.
        np.testing.assert_allclose(out, flux, atol=5 * 7e-4)

    def test_gradients_are_finite(self):
        gradient = jax.grad(lambda f: (smooth_and_shift(f, column(2.0), column(0.5)) ** 2).sum())(spectra(1))
        chex.assert_tree_all_finite(gradient)


class TestAugment:
    def test_zero_settings_are_the_identity(self):
        flux = spectra()
        out, valid = run(jax.random.key(0), flux, NOTHING)
        np.testing.assert_allclose(out, flux, atol=2e-6)  # through a float32 FFT
        assert np.asarray(valid).all()

    def test_depends_on_the_key_alone(self):
        flux, config = spectra(), AugmentConfig(gap_probability=0.5)
        first, again, other = (run(jax.random.key(k), flux, config) for k in (0, 0, 1))
        chex.assert_trees_all_equal(first, again)
        assert not np.allclose(first[0], other[0], atol=1e-3)

    def test_rows_vary_differently(self):
        out, _ = run(jax.random.key(0), jnp.tile(spectra(1), (4, 1)), AugmentConfig())
        assert (np.abs(np.asarray(out)[1:] - np.asarray(out)[:1]).max(axis=1) > 1e-3).all()

    def test_vmap_gives_each_key_its_own(self):
        keys, config = jax.random.split(jax.random.key(0), 3), AugmentConfig(gap_probability=0.5)
        flux = spectra(2)
        together = jax.jit(jax.vmap(lambda key: augment(key, flux, config)))(keys)
        for index, key in enumerate(keys):
            out, valid = run(key, flux, config)
            np.testing.assert_allclose(together[0][index], out, atol=2e-6)  # another batch of float32 FFTs
            np.testing.assert_array_equal(together[1][index], valid)

    def test_extreme_fluxes_stay_finite(self):
        flux = jnp.concatenate([jnp.zeros((1, PIXELS)), jnp.ones((1, PIXELS)), 50 * spectra(1)])
        out, _ = run(jax.random.key(0), flux, AugmentConfig(smoothing=(2.5, 12.0)))
        chex.assert_tree_all_finite(out)

    def test_noise_is_log_uniform_in_its_range(self):
        out, _ = run(jax.random.key(0), jnp.ones((400, PIXELS)), only(noise=(0.003, 0.03)))
        sigma = np.asarray(out).std(axis=1)
        # The standard deviation of 1462 numbers has an error of 1.9%; the limits are 5 sigma.
        assert sigma.min() > 0.003 * 0.9
        assert sigma.max() < 0.03 * 1.1
        # Uniform in the logarithm over a decade: mean -2.02, sigma 0.289 / sqrt(400).
        np.testing.assert_allclose(np.log10(sigma).mean(), np.log10(0.003) + 0.5, atol=5 * 0.289 / 20)

    def test_continuum_errors_are_smooth_and_have_the_given_size(self):
        out, _ = run(jax.random.key(0), jnp.ones((2000, PIXELS)), only(continuum=0.02))
        error = np.asarray(out) - 1
        x = np.linspace(-1, 1, PIXELS)
        series = np.polynomial.chebyshev.chebvander(x, 6)
        coefficients = np.linalg.lstsq(series, error.T, rcond=None)[0]
        np.testing.assert_allclose(series @ coefficients, error.T, atol=1e-5)  # degree 6 at most; float32
        # A standard deviation of 2000 draws has an error of 1.6%.
        np.testing.assert_allclose(coefficients.std(axis=1), 0.02, rtol=5 * 0.016)

    def test_flux_calibration_errors_have_small_scales_only(self):
        out, _ = run(jax.random.key(0), jnp.ones((2000, PIXELS)), only(response=0.004, response_degree=24))
        error = np.asarray(out) - 1
        series = np.polynomial.chebyshev.chebvander(np.linspace(-1, 1, PIXELS), 24)
        coefficients = np.linalg.lstsq(series, error.T, rcond=None)[0]
        np.testing.assert_allclose(series @ coefficients, error.T, atol=1e-5)  # float32
        np.testing.assert_allclose(coefficients[:7], 0, atol=1e-5)  # those degrees belong to the continuum
        np.testing.assert_allclose(coefficients[7:].std(axis=1), 0.004, rtol=5 * 0.016)  # of 2000 draws

    def test_noise_of_degraded_copies_has_the_given_strength_and_width(self):
        degraded, width = jnp.arange(600) % 2 == 0, jnp.where(jnp.arange(600) % 2 == 0, 6.0, 0.0)
        config = only(noise=(0.01, 0.01), degraded_noise=(0.08, 0.08))
        out, _ = run(jax.random.key(0), jnp.ones((600, PIXELS)), config, degraded, width)
        error = np.asarray(out) - 1
        # White noise smoothed by a Gaussian of sigma w keeps 1 / sqrt(2 w sqrt(pi)) of its strength; 300 rows
        # of 1462 / (2 w sqrt(pi)) independent stretches determine it to half a percent.
        expected = 0.08 / np.sqrt(2 * 6 * np.sqrt(np.pi))
        np.testing.assert_allclose(error[::2].std(), expected, rtol=0.025)
        np.testing.assert_allclose(error[1::2].std(), 0.01, rtol=0.01)
        neighbours = [np.mean(part[:, 1:] * part[:, :-1]) / part.var() for part in (error[::2], error[1::2])]
        np.testing.assert_allclose(neighbours, [np.exp(-1 / (4 * 6**2)), 0], atol=0.01)

    def test_smoothing_is_log_uniform_in_its_range(self):
        line = 1 - jnp.exp(-0.5 * ((jnp.arange(PIXELS) - 700.0) / 2) ** 2)[None]
        out, _ = run(jax.random.key(0), jnp.tile(line, (1000, 1)), only(smoothing=(1.0, 10.0)))
        depth = 1 - np.asarray(out).min(axis=1)
        # A line of sigma 2 smoothed by s keeps 2 / sqrt(4 + s^2) of its depth.
        width = np.sqrt((2 / depth) ** 2 - 4)
        assert width.min() > 1 - 1e-3  # float32 FFT
        assert width.max() < 10 + 1e-2
        # Uniform in the logarithm over a decade: mean 0.5, sigma 0.289.
        np.testing.assert_allclose(np.log10(width).mean(), 0.5, atol=5 * 0.289 / np.sqrt(1000))

    def test_shifts_are_uniform(self):
        line = 1 - jnp.exp(-0.5 * ((jnp.arange(PIXELS) - 700.0) / 3) ** 2)[None]
        out, _ = run(jax.random.key(0), jnp.tile(line, (1000, 1)), only(shift=1.5))
        weight = 1 - np.asarray(out)
        shift = (weight * np.arange(PIXELS)).sum(1) / weight.sum(1) - 700
        # Centroids over 1462 pixels of float32 rounding 1e-7: 2e-3 pixel and less.
        assert np.abs(shift).max() < 1.5 + 5e-3
        np.testing.assert_allclose(shift.std(), 1.5 / np.sqrt(3), rtol=0.1)  # 1000 draws: 2%
        np.testing.assert_allclose(shift.mean(), 0, atol=5 * 0.87 / np.sqrt(1000))

    @pytest.mark.parametrize("name", ["noise", "degraded_noise", "smoothing"])
    @pytest.mark.parametrize("bounds", [(0.0, 0.1), (0.2, 0.1), (-0.1, 0.1)])
    def test_ranges_without_a_logarithm_are_refused(self, name, bounds):
        with pytest.raises(ConfigError, match=f"^{name} must"):
            AugmentConfig(**{name: bounds})


class TestGaps:
    def test_statistics(self):
        _, valid = run(jax.random.key(0), jnp.ones((3000, 400)), only(gap_probability=0.3, gap_width=100))
        missing = ~np.asarray(valid)
        edges = np.diff(np.pad(missing, ((0, 0), (1, 1))).astype(int), axis=1)
        assert ((edges == 1).sum(1) <= 1).all()  # one stretch at most
        width = missing.sum(1)
        assert width.max() <= 100
        # One gap in 101 is narrower than two pixels and may fall between them.
        np.testing.assert_allclose((width > 0).mean(), 0.3, atol=5 * np.sqrt(0.3 * 0.7 / 3000))
        whole = width[(width > 0) & ~missing[:, 0] & ~missing[:, -1]]
        np.testing.assert_allclose(whole.mean(), 50, atol=5 * 29 / np.sqrt(len(whole)))  # uniform to 100
        middle = (missing * np.arange(400)).sum(1)[width > 0] / width[width > 0]
        np.testing.assert_allclose(middle.mean(), 200, atol=5 * 115 / np.sqrt(len(middle)))

    def test_gaps_leave_the_flux_unchanged(self):
        flux = spectra()
        out, valid = run(jax.random.key(0), flux, only(gap_probability=1.0))
        assert (~np.asarray(valid)).any(axis=1).all()
        np.testing.assert_allclose(out, flux, atol=2e-6)  # through a float32 FFT


class TestMix:
    def setup_method(self):
        rng = np.random.default_rng(0)
        self.neighbours = jnp.asarray([rng.permutation(20)[:4] for _ in range(20)])
        self.index = jnp.asarray(np.tile(np.arange(20), 200))

    def draw(self, key=0, mixing=0.5):
        partner, share = mix(jax.random.key(key), self.index, self.neighbours, mixing)
        return np.asarray(partner), np.asarray(share)

    def test_all_neighbours_and_no_others_are_drawn_equally_often(self):
        partner, _ = self.draw()
        star = int(self.index[0])
        mine = partner[np.asarray(self.index) == star]
        shares = [(mine == neighbour).mean() for neighbour in np.asarray(self.neighbours)[star]]
        np.testing.assert_allclose(shares, 0.25, atol=5 * np.sqrt(0.25 * 0.75 / 200))  # of 200 draws
        assert sum(shares) == 1

    def test_shares_are_uniform_up_to_mixing(self):
        _, share = self.draw(mixing=0.5)
        assert share.shape == (len(self.index), 1)
        assert share.min() >= 0
        assert share.max() < 0.5
        np.testing.assert_allclose(share.mean(), 0.25, atol=5 * 0.144 / np.sqrt(len(share)))
        assert not self.draw(mixing=0.0)[1].any()

    def test_depends_on_the_key_alone(self):
        np.testing.assert_array_equal(self.draw(1)[0], self.draw(1)[0])
        assert (self.draw(1)[0] != self.draw(2)[0]).any()


class TestBlueEnd:
    def test_extrapolates_half_of_the_spectra_linearly(self):
        flux = jnp.tile(jnp.asarray([[0.0] * 5 + [2.0] + [1.0] * 14]), (400, 1))
        valid = jnp.tile(jnp.arange(20) >= 5, (400, 1)) & (jnp.arange(20) != 15)
        out, now = (np.asarray(a) for a in extend_blue(jax.random.key(0), flux, valid))
        extended = now[:, 0]
        assert abs(extended.mean() - 0.5) < 5 * 0.5 / np.sqrt(400)
        np.testing.assert_array_equal(out[:, 5:], flux[:, 5:])
        np.testing.assert_array_equal(now[:, 5:], valid[:, 5:])
        np.testing.assert_array_equal(now[:, :5], np.tile(extended[:, None], (1, 5)))
        np.testing.assert_array_equal(out[~extended], flux[~extended])
        line = out[extended, :6]
        np.testing.assert_allclose(np.diff(line, 2, axis=1), 0, atol=1e-6)  # float32 of 2
        ratio = line[:, 0] / 2
        assert ratio.min() > 0.2
        assert ratio.max() < 1.3

    def test_complete_and_empty_spectra_stay_unchanged(self):
        flux = jnp.ones((50, 8))
        for valid in (jnp.ones((50, 8), bool), jnp.zeros((50, 8), bool)):
            out, now = extend_blue(jax.random.key(0), flux, valid)
            np.testing.assert_array_equal(out, flux)
            np.testing.assert_array_equal(now, valid)
