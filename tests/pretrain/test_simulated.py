import dataclasses

import chex
import jax
import numpy as np
import pytest

from specjax.preprocess import to_lamost
from specjax.pretrain import simulated, simulated_batches
from specjax.pretrain.augment import AugmentConfig
from specjax.pretrain.config import PretrainConfig
from specjax.simulate import grism
from specjax.simulate.emulator import Emulator
from specjax.simulate.process import Shape
from specjax.spectra import Spectra
from tests.simulate.test_labels import grid

PLAIN = AugmentConfig(
    smoothing=(0.0, 0.0),
    shift=0.0,
    continuum=0.0,
    response=0.0,
    noise=(0.0, 0.0),
    degraded_noise=(0.0, 0.0),
    gap_probability=0.0,
)
CONFIG = PretrainConfig(augment=PLAIN, head_augment=PLAIN)
WAVELENGTH = np.linspace(3950.0, 5652.0, 1800)
LINES = np.linspace(4000.0, 5600.0, 60)


def flux(labels):
    """Spectra over the continuum of sixty lines that deepen with metals and weaken with temperature."""
    depth = 0.3 * 10 ** (0.25 * labels[:, 2]) * (5500 / labels[:, 0])
    lines = np.exp(-0.5 * ((WAVELENGTH - LINES[:, None]) / 1.5) ** 2).sum(axis=0)
    return 1 - depth[:, None] * lines


def emulator(n=150):
    labels = grid(n)
    nodes = np.linspace(3940.0, 5660.0, 12)
    continuum = 1e6 * (nodes / 5000) ** (-(labels[:, :1] / 2500))
    shape = Shape(np.array([1.5, 2.0, 2.0, 5.0, 5.0]), 1e-5)
    return Emulator.fit(
        labels, WAVELENGTH, flux(labels), nodes, continuum, fwhm=0.6, components=12, shape=shape
    )


def library():
    """Three flat-lined library spectra of different colours, 3600-10300 A."""
    wavelength = np.geomspace(3600, 10300, 4000)
    slopes = (wavelength / 5000) ** np.array([[-3.0], [-2.2], [-1.6]])
    return Spectra.build(wavelength, slopes, id=["a", "b", "c"], medium="vacuum", survey="library")


@pytest.fixture(scope="module")
def stars():
    patch = pytest.MonkeyPatch()
    patch.setattr(simulated, "DEGRADED_FWHM", (8.0, 24.0))
    made = simulated.build(emulator(), library(), degraded=True)
    patch.undo()
    return made


@pytest.fixture(scope="module")
def material(stars):
    return simulated_batches.make_material(stars, CONFIG)


def test_the_corpus_has_all_resolutions_and_partners(stars):
    n = len(stars.labels)
    assert n > 140
    chex.assert_shape(stars.flux, (n, 3, 1462))
    chex.assert_shape(stars.xp_flux, (n, 343))
    assert stars.noise_width[0] == 0
    assert (np.diff(stars.noise_width) > 0).all()
    assert 300 < stars.xp_valid.sum() < 343  # the library begins at 3600 A
    # Lines are shallower at lower resolution.
    depth = stars.flux.std(axis=2).mean(axis=0)
    assert depth[0] > depth[1] > depth[2]


def test_continuations_have_the_level_of_the_star_and_keep_its_pixels():
    model = emulator(60)
    before = simulated.simulate(model)
    after = simulated.continued(before, library())
    inside = ~before.mask[0]
    np.testing.assert_array_equal(after.flux[:, inside], before.flux[:, inside])
    assert not after.mask.any()
    first = int(np.flatnonzero(inside)[0])
    step = np.median(after.flux[:, first - 40 : first], axis=1) / np.median(
        after.flux[:, first : first + 40], axis=1
    )
    # The continuum changes by 3% over 46 A, and lines block some of it.
    np.testing.assert_allclose(step, 1, atol=0.1)


def test_drawn_spectra_are_those_of_the_drawn_labels(stars, material):
    """With labels that the grid does not have, against the whole way through the preprocessing."""
    config = dataclasses.replace(PLAIN, moving=0.3)
    batch = material.draw(jax.random.key(0), material.data, 16, config)
    labels = simulated_batches._draw_labels(
        *jax.random.split(jax.random.key(0), 7)[:2], material.data, 16, 0.3
    )
    drawn = np.asarray(labels, np.float64)
    assert (np.abs(drawn[:, None] - stars.labels).max(axis=2).min(axis=1) > 1e-3).any()
    targets = (drawn[:, :4] - material.scaler["label_mean"]) / material.scaler["label_std"]
    np.testing.assert_allclose(batch["labels"], targets, atol=1e-4)
    whole = dataclasses.replace(emulator(), labels=drawn)
    direct = to_lamost(simulated.continued(simulated.simulate(whole), library()), fwhm=2.5)
    # Lines are up to half deep; the components keep all but a few thousandths.
    assert np.median(np.abs(batch["flux"] - direct.flux)) < 2e-3


def test_labels_stay_inside_the_domain(material):
    """With steps so large that many would leave it."""
    domain = emulator().domain
    labels = simulated_batches._draw_labels(jax.random.key(1), jax.random.key(2), material.data, 512, 1.0)
    labels = np.asarray(labels, np.float64)
    moved = np.abs(labels[:, None] - grid(150)).max(axis=2).min(axis=1) > 1e-3
    assert 0.05 < moved.mean() < 0.95
    assert domain.contains(labels[moved]).all()


def test_a_group_has_one_resolution_and_its_noise(material):
    column = simulated_batches._draw_resolutions(jax.random.key(0), 64, 3, 0.5)
    groups = np.asarray(column).reshape(8, 8)
    assert (groups == groups[:, :1]).all()
    assert len(np.unique(column)) > 1
    assert (simulated_batches._draw_resolutions(jax.random.key(0), 64, 3, 0.0) == 0).all()
    odd = simulated_batches._draw_resolutions(jax.random.key(3), 9, 3, 1.0)
    assert len(np.unique(odd)) == 1
    assert odd[0] > 0


def test_batches_follow_their_key_and_are_complete(material):
    config = AugmentConfig(degraded_probability=0.5, gap_width=100)
    draw = jax.jit(material.draw, static_argnums=(2, 3))
    first, again, other = (draw(jax.random.key(k), material.data, 32, config) for k in (0, 0, 1))
    chex.assert_trees_all_equal(first, again)
    assert (first["flux"] != other["flux"]).any()
    chex.assert_shape(first["flux"], (32, 1462))
    chex.assert_shape(first["xp_flux"], (32, 343))
    chex.assert_shape(first["labels"], (32, 4))
    chex.assert_tree_all_finite(first)
    assert (first["xp_flux"][~first["xp_valid"]] == 0).all()


@pytest.mark.slow
def test_cool_stars_have_the_weight_of_the_settings(stars):
    material = simulated_batches.make_material(stars, dataclasses.replace(CONFIG, cool_weight=0.25))
    batch = material.draw(jax.random.key(0), material.data, 64, PLAIN)
    teff = batch["labels"][:, 0] * material.scaler["label_std"][0] + material.scaler["label_mean"][0]
    cool = np.asarray(teff) < simulated_batches.COOL
    assert 0 < cool.sum() < 64
    np.testing.assert_array_equal(batch["weight"], np.where(cool, 0.25, 1.0))


def observed():
    """Two spectra over the whole range, each with one line that no simulated star has."""
    wavelength = np.geomspace(3560, 10300, 5000)
    lines = np.exp(-0.5 * ((wavelength - np.array([[4500.0], [5000.0]])) / 4) ** 2)
    flux = 1e3 * (1 - 0.8 * lines)
    return Spectra.build(wavelength, flux, id=["x", "y"], medium="vacuum", survey="observed")


def test_observed_stars_take_the_place_of_simulated_ones_and_have_no_labels(stars):
    made = simulated.build(emulator(), library(), observed=[observed()])
    material = simulated_batches.make_material(made, CONFIG)
    chex.assert_shape(made.observed.flux, (2, 1, 1462))
    config = dataclasses.replace(PLAIN, observed_probability=0.5)
    batch = material.draw(jax.random.key(0), material.data, 64, config)
    mine = np.asarray(batch["weight"]) == 0
    assert 16 < mine.sum() < 48
    expected = made.observed.flux[:, 0]
    distance = np.abs(np.asarray(batch["flux"])[:, None] - expected).max(axis=2)
    # Smoothing by Fourier transforms leaves float32 rounding.
    assert (distance[mine].min(axis=1) < 1e-5).all()
    assert (distance[~mine].min(axis=1) > 0.1).all()
    star = distance[mine].argmin(axis=1)
    assert set(star) == {0, 1}
    # The partner is that of the same star: its line is at 450 or 500 nm.
    partners = np.asarray(batch["xp_flux"])[mine]
    depth = partners[:, [57, 82]]
    np.testing.assert_array_equal(depth.argmin(axis=1), star)
    without = material.draw(jax.random.key(0), material.data, 64, PLAIN)
    assert (without["weight"] == 1).all()
    # Stars without labels cannot validate.
    mixed = simulated_batches.make_material(made, dataclasses.replace(CONFIG, augment=config))
    np.testing.assert_array_equal(mixed.validation.flux, material.validation.flux)
    np.testing.assert_array_equal(without["flux"][~mine], batch["flux"][~mine])


def test_the_grid_covers_what_the_continuum_needs():
    assert grism.WAVELENGTH[0] < 3701
    assert grism.WAVELENGTH[-1] > 5699
