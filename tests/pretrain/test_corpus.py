import numpy as np
import pytest

from specjax.catalogues.star_names import normalise_star_name
from specjax.preprocess import to_gaia_xp, to_lamost
from specjax.pretrain import corpus
from specjax.pretrain.corpus import Pairs, _best_match, _continued, in_range, xp_partners
from specjax.services import stellar_libraries
from specjax.simulate import grism
from specjax.spectra import Spectra
from specjax.surveys import stelib
from specjax.wavelength import GAIA_XP_WAVELENGTH
from tests.pretrain import short_run

FOLDER = stellar_libraries.stellar_libraries_folder()  # at import: the tests themselves have an empty cache
WIDE = np.arange(3200.0, 10600.0, 10.0)
XP = GAIA_XP_WAVELENGTH


def black_bodies(temperatures, wavelength=WIDE, scale=1.0, first=0.0, last=np.inf):
    """Planck curves with a few broad lines, in arbitrary units, masked outside [first, last] A."""
    t = np.atleast_1d(temperatures)[:, None]
    flux = (5500 / wavelength) ** 5 / np.expm1(1.4388e8 / (wavelength * t))
    for line in (4100, 4340, 4861, 6563, 8542):
        flux *= 1 - 0.2 * np.exp(-0.5 * ((wavelength - line) / 30) ** 2)
    mask = np.broadcast_to((wavelength < first) | (wavelength > last), flux.shape)
    return Spectra(
        wavelength=wavelength,
        flux=np.where(mask, 0.0, scale * flux),
        ivar=np.where(mask, 0.0, 1.0),
        mask=mask.copy(),
        id=np.array([f"{x:.0f}K" for x in t[:, 0]]),
        has_ivar=False,
    )


@pytest.fixture(scope="module")
def templates():
    return to_gaia_xp(black_bodies([4000, 5000, 6000, 7000]), fwhm_from=2.5)


@pytest.fixture(scope="module")
def stars():
    """Stars with the coverage of MILES, in another flux unit than the library."""
    return black_bodies([4300, 5200, 6500], scale=1e-13, first=3540, last=7410)


@pytest.fixture(scope="module")
def library():
    return black_bodies(np.arange(4000, 7001, 250), first=3622, last=10354)


@pytest.fixture(scope="module")
def partners(stars, library):
    return xp_partners(stars, 2.5, library)


@pytest.fixture(scope="module")
def built():
    return corpus.build(FOLDER)


def test_in_range():
    rows = [(3800, 4, 0), (7500, 4, 0), (3799, 4, 0), (7501, 4, 0)]
    rows += [(5000, np.nan, 0), (np.nan, 4, 0), (5000, 4, np.nan)]
    labels = np.array(rows, float)
    assert in_range(labels).tolist() == [True, True, False, False, False, False, False]


class TestContinued:
    other = np.linspace(2.0, 4.0, 60)
    nothing = np.zeros(60, bool)

    def own(self, first=15, last=45):
        flux = np.where((np.arange(60) >= first) & (np.arange(60) < last), 0.5 * self.other, 0.0)
        return flux, flux == 0

    def test_the_scaled_other_spectrum_fills_both_ends(self):
        flux, mask = _continued(*self.own(), self.other, self.nothing)
        np.testing.assert_allclose(flux, 0.5 * self.other, rtol=1e-12)
        assert not mask.any()

    def test_each_side_is_scaled_at_its_own_join(self):
        flux, mask = self.own(10, 50)
        flux = np.where(np.arange(60) < 30, flux, 3 * flux)
        joined, _ = _continued(flux, mask, self.other, self.nothing)
        np.testing.assert_allclose(joined[:10], 0.5 * self.other[:10])
        np.testing.assert_allclose(joined[50:], 1.5 * self.other[50:])
        np.testing.assert_array_equal(joined[10:50], flux[10:50])

    def test_interior_gaps_stay_masked(self):
        flux, mask = self.own()
        mask[28:32], flux[28:32] = True, 0
        joined, left = _continued(flux, mask, self.other, self.nothing)
        assert left.nonzero()[0].tolist() == [28, 29, 30, 31]
        assert not joined[28:32].any()

    def test_samples_that_the_other_does_not_cover_stay_masked(self):
        absent = np.arange(60) < 5
        flux, mask = _continued(*self.own(), self.other, absent)
        np.testing.assert_array_equal(mask, absent)
        assert not flux[:5].any()

    def test_an_end_without_a_common_stretch_is_not_continued(self):
        absent = (np.arange(60) >= 15) & (np.arange(60) < 35)
        _, mask = _continued(*self.own(), self.other, absent)
        assert mask[:15].all()
        assert not mask[45:].any()

    def test_the_arguments_stay_unchanged(self):
        flux, mask = self.own()
        _continued(flux, mask, self.other, self.nothing)
        np.testing.assert_array_equal(flux, self.own()[0])
        np.testing.assert_array_equal(mask, self.own()[1])


class TestBestMatch:
    def test_has_the_same_temperature(self, templates):
        for row in range(4):
            assert _best_match(1.02 * templates.flux[row], np.zeros(343, bool), templates) == row

    def test_uses_valid_samples_only(self, templates):
        mask = np.arange(343) > 150
        flux = np.where(mask, 1e5, templates.flux[2])
        assert _best_match(flux, mask, templates) == 2

    def test_needs_enough_common_samples(self, templates):
        mask = np.arange(343) >= corpus.MIN_COMMON - 1
        assert _best_match(templates.flux[1], mask, templates) is None
        mask[corpus.MIN_COMMON - 1] = False
        assert _best_match(templates.flux[1], mask, templates) is not None


class TestPartners:
    def test_are_close_to_a_complete_observation(self, partners):
        whole = to_gaia_xp(black_bodies([4300, 5200, 6500]), fwhm_from=2.5)
        error = np.abs(partners.flux / whole.flux - 1)[~partners.mask]
        # A library with steps of 250 K is up to 125 K off, which changes the ratio of 1000 nm to the red join
        # by a few percent. The edges of the coverage are smoothed on one side only.
        assert np.median(error) < 0.01
        assert error.max() < 0.06

    def test_reach_from_miles_to_the_end_of_mastar(self, partners):
        # The kernel of 40 to 280 A needs support on either side of a sample: the blue end may lose one
        # sample.
        assert XP[~partners.mask[0]][0] == pytest.approx(3540, abs=40)
        assert XP[~partners.mask[0]][-1] == 10200
        assert (~partners.mask[:, 20:]).all()

    def test_own_samples_stay_unchanged(self, stars, partners):
        own = xp_partners(stars, 2.5)
        bare = to_gaia_xp(stars, fwhm_from=2.5)
        np.testing.assert_array_equal(own.flux, bare.flux)
        np.testing.assert_array_equal(partners.flux[~own.mask], own.flux[~own.mask])
        assert own.mask[:, XP > 7600].all()
        np.testing.assert_allclose(partners.flux[:, 107], 1)

    def test_masked_fraction_and_flag_are_updated(self, partners):
        np.testing.assert_allclose(partners.meta["masked_fraction"], partners.mask.mean(axis=1))
        assert partners.meta["flag"].tolist() == ["good"] * 3
        assert (partners.ivar[partners.mask] == 0).all()
        assert (partners.ivar[~partners.mask] > 0).all()

    def test_a_star_without_flux_at_550_nm_has_no_partner(self, library):
        short = black_bodies([5200], first=3540, last=5000)
        partner = xp_partners(short, 2.5, library)
        assert partner.mask.all()
        assert partner.meta["flag"].tolist() == ["no_reference"]


@pytest.mark.skipif(
    not stellar_libraries.have_stellar_libraries(),
    reason=f"no stellar libraries in {FOLDER}: `specjax fetch stellar-libraries` brings them (121 MB)",
)
class TestBuild:
    def test_has_the_labelled_stars_that_are_not_in_stelib(self, built):
        pairs, _ = built
        assert len(pairs) == 689
        assert (pairs.labels[:, 2] < -1).sum() == 121
        assert in_range(pairs.labels).all()
        names = {normalise_star_name(name) for name in pairs.id}
        targets = {normalise_star_name(name) for name in stelib.read(FOLDER / "stelib").meta["name"]}
        assert not names & targets

    def test_fluxes_are_on_both_grids(self, built):
        pairs, _ = built
        assert pairs.flux.shape == (689, 1462)
        assert pairs.flux.dtype == pairs.xp_flux.dtype == np.float32
        assert np.isfinite(pairs.flux).all()
        assert np.isfinite(pairs.xp_flux).all()
        assert 0.7 < np.median(pairs.flux) < 1.1
        assert pairs.xp_valid[:, 30:].mean() > 0.999  # 396-1020 nm
        np.testing.assert_allclose(pairs.xp_flux[:, 107], 1, rtol=1e-6)
        assert pairs.degraded is None

    def test_the_fill_keeps_valid_pixels_and_predicts_masked_ones(self, built):
        pairs, fill = built
        mask = np.zeros(pairs.flux.shape, bool)
        mask[:, 200:300] = True
        filled = fill.apply(np.where(mask, 1.0, pairs.flux), None, mask)
        np.testing.assert_array_equal(filled[~mask], pairs.flux[~mask])
        error = np.std((filled - pairs.flux)[mask])
        assert error < 0.3 * np.std(pairs.flux[mask])  # the error of filling with the mean

    def test_degraded_copies(self, built):
        """689 stars at eight resolutions."""
        said = []
        pairs, _ = corpus.build(FOLDER, said.append, degraded=True)
        assert pairs.degraded.shape == (689, 8, 1462)
        assert np.isfinite(pairs.degraded).all()
        assert sum("degrading" in line for line in said) == 8
        contrast = np.diff(pairs.degraded, axis=2).std(axis=(0, 2))
        assert (np.diff(contrast) < 0).all()  # the lower the resolution, the smoother


def test_noise_width_is_that_of_preprocessed_noise():
    """Against white noise processed by `to_lamost`."""
    fwhm, stars = 24.0, 60
    noise = np.random.default_rng(0).normal(size=(stars, grism.WAVELENGTH.size))
    spectra = Spectra(
        wavelength=grism.WAVELENGTH,
        flux=1 + 0.02 * noise,
        ivar=np.full(noise.shape, 2500.0),
        mask=np.zeros(noise.shape, bool),
        id=np.array([f"s{i}" for i in range(stars)]),
    )
    seen = to_lamost(spectra, fwhm=fwhm).flux
    seen = seen - seen.mean(axis=1, keepdims=True)
    width = float(corpus.noise_width(np.array([fwhm]))[0])
    # The scatter of white noise smoothed by a Gaussian of that sigma; the continuum removes a few of the 60
    # independent stretches of each spectrum.
    expected = 0.02 / np.sqrt(2 * width * np.sqrt(np.pi))
    assert abs(seen.std() / expected - 1) < 0.1
    assert corpus.noise_width(np.array([2.5, 5.0])).tolist() == [0.0, 0.0]  # not smoothed


def test_indexing_pairs_selects_the_same_rows_of_all_arrays():
    whole = short_run.corpus()
    pairs = whole[np.array([3, 1])]
    assert isinstance(pairs, Pairs)
    assert pairs.id.tolist() == ["star3", "star1"]
    np.testing.assert_array_equal(pairs.degraded, whole.degraded[[3, 1]])
    np.testing.assert_array_equal(pairs.noise_width, whole.noise_width)
