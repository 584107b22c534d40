import dataclasses

import chex
import jax
import numpy as np
import pytest

from specjax.pretrain.batches import draw_batch, make_data
from specjax.report.metrics import robust_sigma
from tests import synthetic
from tests.pretrain.short_run import AUGMENT, CONFIG, corpus, held_out_stars, without_held_out
from tests.synthetic import NOTHING

pytestmark = pytest.mark.usefixtures("quick_compilation")


class TestData:
    def test_labels_are_standardised_and_neighbours_are_the_nearest_stars(self):
        pairs = corpus()
        data, _, scaler, *_ = make_data(pairs, CONFIG)
        labels = np.asarray(data["labels"])
        kept = pairs.labels[~held_out_stars(pairs)]
        np.testing.assert_allclose(labels * scaler["label_std"] + scaler["label_mean"], kept, rtol=1e-5)
        np.testing.assert_allclose(labels.mean(0), 0, atol=1e-5)  # float32 of 40 numbers
        distance = ((labels[:, None] - labels[None]) ** 2).sum(-1)
        np.fill_diagonal(distance, np.inf)
        np.testing.assert_array_equal(data["neighbours"], np.argsort(distance, axis=1)[:, :6])

    def test_held_out_stars_depend_on_the_seed_and_validate_the_stages(self):
        pairs = corpus()
        held_out = held_out_stars(pairs)
        assert held_out.sum() == 10
        assert (held_out != held_out_stars(pairs, dataclasses.replace(CONFIG, seed=1))).any()
        _, validation, *_ = make_data(pairs, CONFIG)
        assert validation.held_out
        assert sorted(validation.labels[:, 0]) == sorted(pairs.labels[held_out, 0])

    def test_training_stars_validate_if_none_is_held_out(self):
        pairs = corpus()
        data, validation, scaler, *_ = make_data(pairs, dataclasses.replace(CONFIG, held_out=0.0))
        assert not validation.held_out
        np.testing.assert_array_equal(validation.flux, pairs.flux)
        scores = validation.scores(data["labels"], scaler, 1)
        assert sorted(scores) == ["train R2", "train sigma([Fe/H])"]
        np.testing.assert_allclose(
            list(scores.values()), [0, 1], atol=1e-6
        )  # float32 of a dex; a perfect prediction

    def test_the_scatter_is_that_of_observed_stars_that_were_held_out(self):
        pairs = corpus()
        _, validation, scaler, *_ = make_data(pairs, CONFIG)
        predicted = np.random.default_rng(0).normal(size=validation.labels.shape)
        labels = predicted * scaler["label_std"] + scaler["label_mean"]
        scatter = [robust_sigma(column) for column in (labels - validation.labels).T]
        np.testing.assert_allclose(validation.scatter(predicted, scaler), scatter)
        for change in ({"held_out": False}, {"simulated": True}):
            assert dataclasses.replace(validation, **change).scatter(predicted, scaler) is None

    def test_degraded_copies_follow_the_observed_spectrum(self):
        pairs = corpus()
        data, *_ = make_data(pairs, CONFIG)
        kept = ~held_out_stars(pairs)
        np.testing.assert_array_equal(data["spectra"][:, 0], pairs.flux[kept])
        np.testing.assert_array_equal(data["spectra"][:, 1:], pairs.degraded[kept])
        np.testing.assert_array_equal(data["noise_width"], [0, 0, 2, 5])


class TestDraw:
    draw = staticmethod(jax.jit(draw_batch, static_argnums=(2, 3)))

    def test_flux_and_labels_are_mixed_with_the_same_weights(self):
        """Every spectrum is (1 - s) a + s b of two neighbours, and so are its XP partner and its labels."""
        pairs = corpus(degraded=False)
        data, *_ = make_data(pairs, CONFIG)
        mixed = dataclasses.replace(NOTHING, mixing=0.5)
        batch = jax.tree.map(np.asarray, self.draw(jax.random.key(0), data, 64, mixed))
        full = np.concatenate([data["spectra"][:, 0], data["labels"]], axis=1)
        found = np.concatenate([batch["flux"], batch["labels"]], axis=1)
        near = [(i, j) for i, row in enumerate(np.asarray(data["neighbours"])) for j in row]
        first, second = np.array(near).T
        step = full[second] - full[first]
        for row, xp, valid in zip(found, batch["xp_flux"], batch["xp_valid"], strict=True):
            share = ((row - full[first]) * step).sum(1) / np.maximum((step**2).sum(1), 1e-9)
            misfit = np.abs(full[first] + share[:, None] * step - row).max(1)
            # float32 of numbers of order 1, through a Fourier transform
            (fits,) = np.nonzero((misfit < 1e-5) & (share > -1e-4) & (share < 0.5 + 1e-4))
            assert fits.size
            i, j, s = first[fits[0]], second[fits[0]], share[fits[0]]
            np.testing.assert_array_equal(valid, data["xp_valid"][i] & data["xp_valid"][j])
            expected = (1 - s) * data["xp_flux"][i] + s * data["xp_flux"][j]
            np.testing.assert_allclose(xp[valid], expected[valid], atol=1e-4)  # s is accurate to about 1e-5

    def test_moved_stars_resemble_stars_with_their_new_labels(self):
        """Noiseless spectra follow the labels exactly: moved spectra are accurate inside the corpus."""
        values = synthetic.labels(400)
        flux, xp_flux = synthetic.spectra(values, noise=0.0)
        pairs = dataclasses.replace(synthetic.corpus(400), flux=flux, xp_flux=xp_flux, labels=values)
        pairs = dataclasses.replace(pairs, xp_valid=np.ones(xp_flux.shape, bool))
        data, _, scaler, *_ = make_data(pairs, dataclasses.replace(CONFIG, held_out=0.0))
        moving = dataclasses.replace(NOTHING, moving=0.3)
        batch = jax.tree.map(np.asarray, self.draw(jax.random.key(0), data, 300, moving))
        labels = batch["labels"] * scaler["label_std"] + scaler["label_mean"]
        inside = (np.abs(labels - values.mean(0)) < 1.4 * values.std(0)).all(axis=1)  # the corpus ends at 1.7
        assert inside.sum() > 150
        expected = synthetic.spectra(labels, noise=0.0)
        unmoved = np.asarray(data["labels"])
        nearest = ((batch["labels"][:, None] - unmoved[None]) ** 2).sum(-1).argmin(1)
        for name, truth, stars in (("flux", expected[0], flux), ("xp_flux", expected[1], xp_flux)):
            error = np.abs(batch[name] - truth)[inside].mean()
            # A quadratic trend describes these spectra: far closer than the star nearest to the new labels.
            assert error < 0.1 * np.abs(stars[nearest] - truth)[inside].mean(), name

    def test_samples_missing_in_some_star_do_not_move(self):
        pairs = corpus()
        data, *_ = make_data(
            dataclasses.replace(pairs, xp_flux=np.where(pairs.xp_valid, pairs.xp_flux, 1e6)), CONFIG
        )
        batch = self.draw(jax.random.key(0), data, 200, dataclasses.replace(NOTHING, moving=0.3))
        assert np.abs(np.asarray(batch["xp_flux"])[np.asarray(batch["xp_valid"])]).max() < 1e3

    def test_held_out_stars_are_never_drawn(self):
        data, *_ = make_data(without_held_out(corpus()), CONFIG)
        batch = self.draw(jax.random.key(0), data, 2000, AUGMENT)
        for name in ("flux", "xp_flux", "labels"):
            assert np.isfinite(batch[name]).all(), name

    def test_degraded_copies_are_drawn_with_their_probability(self):
        pairs = corpus()
        data, *_ = make_data(dataclasses.replace(pairs, degraded=pairs.degraded + 100), CONFIG)
        for probability, draws in ((0.35, 2000), (0.0, 50), (1.0, 50)):
            variations = dataclasses.replace(NOTHING, degraded_probability=probability)
            flux = np.asarray(self.draw(jax.random.key(0), data, draws, variations)["flux"])
            share = (flux.mean(axis=1) > 50).mean()
            assert abs(share - probability) <= 5 * np.sqrt(probability * (1 - probability) / draws)

    def test_depends_on_the_key_alone(self):
        data, *_ = make_data(corpus(), CONFIG)
        first, again, other = (self.draw(jax.random.key(k), data, 8, AUGMENT) for k in (0, 0, 1))
        chex.assert_trees_all_equal(first, again)
        assert (np.asarray(first["flux"]) != np.asarray(other["flux"])).any()
