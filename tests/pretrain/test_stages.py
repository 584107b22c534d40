import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from specjax import lora
from specjax.foundation import Foundation
from specjax.pretrain import stages as stages_module
from specjax.pretrain.augment import AugmentConfig
from specjax.pretrain.batches import draw, extend_blue, make_data
from specjax.pretrain.corpus import Pairs
from specjax.pretrain.loop import StageConfig
from specjax.pretrain.recipe import PretrainConfig
from specjax.pretrain.stages import Pretraining
from tests import synthetic
from tests.models.tiny import random_system
from tests.synthetic import NOTHING

pytestmark = pytest.mark.usefixtures("quick_compilation")

STAGE = StageConfig(steps=4, batch=8, chunk=2)
VARIATIONS = AugmentConfig(gap_width=6, rendition_probability=0.5)
CONFIG = PretrainConfig(
    held_out=0.25,
    head_pool=512,
    augment=VARIATIONS,
    head_augment=VARIATIONS,
    backbone=STAGE,
    autoencoder=STAGE,
    alignment=STAGE,
    heads=STAGE,
)
FROZEN = [("lamost", "backbone"), ("gaia_xp", "backbone")]


@pytest.fixture(autouse=True)
def _tiny(monkeypatch):
    monkeypatch.setattr(stages_module, "get_preset", lambda name: synthetic.CONFIG)


def corpus(renditions=True):
    pairs = synthetic.corpus()
    if not renditions:
        return pairs
    noise = 0.05 * np.random.default_rng(4).normal(size=(len(pairs), 3, synthetic.PIXELS))
    return dataclasses.replace(
        pairs,
        renditions=(pairs.flux[:, None] + noise).astype(np.float32),
        rendition_width=np.array([0.0, 2.0, 5.0], np.float32),
    )


def held_out_stars(pairs, config=CONFIG):
    """Which stars are not among those that the data are made of, by their XP spectra."""
    kept = np.asarray(make_data(pairs, config)[0]["xp_flux"])
    return ~(pairs.xp_flux[:, None] == kept[None]).all(axis=2).any(axis=1)


def without_held_out(pairs):
    """The spectra of held-out stars as NaN: whatever reads one of them is NaN too."""
    held_out, changes = held_out_stars(pairs), {}
    for name in ("flux", "xp_flux", "renditions"):
        values = getattr(pairs, name).copy()
        values[held_out] = np.nan
        changes[name] = values
    return dataclasses.replace(pairs, **changes)


class TestData:
    def test_labels_are_standardised_and_neighbours_near(self):
        pairs = corpus()
        data, _, scaler = make_data(pairs, CONFIG)
        labels = np.asarray(data["labels"])
        kept = pairs.labels[~held_out_stars(pairs)]
        np.testing.assert_allclose(labels * scaler["label_std"] + scaler["label_mean"], kept, rtol=1e-5)
        np.testing.assert_allclose(labels.mean(0), 0, atol=1e-5)  # float32 of 40 numbers
        distance = ((labels[:, None] - labels[None]) ** 2).sum(-1)
        np.fill_diagonal(distance, np.inf)
        np.testing.assert_array_equal(data["neighbours"], np.argsort(distance, axis=1)[:, :6])

    def test_held_out_stars_are_drawn_by_the_seed_and_judge_the_stages(self):
        pairs = corpus()
        held_out = held_out_stars(pairs)
        assert held_out.sum() == 10
        assert (held_out != held_out_stars(pairs, dataclasses.replace(CONFIG, seed=1))).any()
        _, scored, _ = make_data(pairs, CONFIG)
        assert scored.held_out
        assert sorted(scored.labels[:, 0]) == sorted(pairs.labels[held_out, 0])

    def test_training_stars_judge_where_none_is_held_out(self):
        pairs = corpus()
        data, scored, scaler = make_data(pairs, dataclasses.replace(CONFIG, held_out=0.0))
        assert not scored.held_out
        np.testing.assert_array_equal(scored.flux, pairs.flux)
        scores = scored.scores(data["labels"], scaler, 1)
        assert sorted(scores) == ["train R2", "train sigma([Fe/H])"]
        np.testing.assert_allclose(
            list(scores.values()), [0, 1], atol=1e-6
        )  # float32 of a dex; a perfect guess

    def test_renditions_stand_behind_the_star_as_observed(self):
        pairs = corpus()
        data, _, _ = make_data(pairs, CONFIG)
        kept = ~held_out_stars(pairs)
        np.testing.assert_array_equal(data["spectra"][:, 0], pairs.flux[kept])
        np.testing.assert_array_equal(data["spectra"][:, 1:], pairs.renditions[kept])
        np.testing.assert_array_equal(data["noise_width"], [0, 0, 2, 5])


class TestDraw:
    draw = staticmethod(jax.jit(draw, static_argnums=(2, 3)))

    def test_flux_and_labels_are_mixed_alike(self):
        """Every spectrum is (1 - s) a + s b of two near stars, and so are its partner and its labels."""
        pairs = corpus(renditions=False)
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
            np.testing.assert_allclose(xp[valid], expected[valid], atol=1e-4)  # s is known to some 1e-5

    def test_moved_stars_look_like_stars_of_their_new_labels(self):
        """Noiseless spectra follow the labels exactly: moving is right where the corpus surrounds a star."""
        values = synthetic.labels(400)
        flux, xp_flux = synthetic.spectra(values, noise=0.0)
        pairs = dataclasses.replace(synthetic.corpus(400), flux=flux, xp_flux=xp_flux, labels=values)
        pairs = dataclasses.replace(pairs, xp_valid=np.ones(xp_flux.shape, bool))
        data, _, scaler = make_data(pairs, dataclasses.replace(CONFIG, held_out=0.0))
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
            # A trend of second degree holds these spectra: far closer than the star next to the new labels.
            assert error < 0.1 * np.abs(stars[nearest] - truth)[inside].mean(), name

    def test_samples_that_some_star_lacks_do_not_move(self):
        pairs = corpus()
        data, *_ = make_data(
            dataclasses.replace(pairs, xp_flux=np.where(pairs.xp_valid, pairs.xp_flux, 1e6)), CONFIG
        )
        batch = self.draw(jax.random.key(0), data, 200, dataclasses.replace(NOTHING, moving=0.3))
        assert np.abs(np.asarray(batch["xp_flux"])[np.asarray(batch["xp_valid"])]).max() < 1e3

    def test_held_out_stars_are_never_drawn(self):
        data, *_ = make_data(without_held_out(corpus()), CONFIG)
        batch = self.draw(jax.random.key(0), data, 2000, VARIATIONS)
        for name in ("flux", "xp_flux", "labels"):
            assert np.isfinite(batch[name]).all(), name

    def test_renditions_are_taken_with_their_probability(self):
        pairs = corpus()
        data, *_ = make_data(dataclasses.replace(pairs, renditions=pairs.renditions + 100), CONFIG)
        for probability, draws in ((0.35, 2000), (0.0, 50), (1.0, 50)):
            variations = dataclasses.replace(NOTHING, rendition_probability=probability)
            flux = np.asarray(self.draw(jax.random.key(0), data, draws, variations)["flux"])
            share = (flux.mean(axis=1) > 50).mean()
            assert abs(share - probability) <= 5 * np.sqrt(probability * (1 - probability) / draws)

    def test_depends_on_the_key_alone(self):
        data, *_ = make_data(corpus(), CONFIG)
        first, again, other = (self.draw(jax.random.key(k), data, 8, VARIATIONS) for k in (0, 0, 1))
        chex.assert_trees_all_equal(first, again)
        assert (np.asarray(first["flux"]) != np.asarray(other["flux"])).any()


class TestBlueEnd:
    def test_continues_half_of_the_spectra_in_a_straight_line(self):
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

    def test_spectra_that_reach_the_end_or_have_nothing_stay(self):
        flux = jnp.ones((50, 8))
        for valid in (jnp.ones((50, 8), bool), jnp.zeros((50, 8), bool)):
            out, now = extend_blue(jax.random.key(0), flux, valid)
            np.testing.assert_array_equal(out, flux)
            np.testing.assert_array_equal(now, valid)


@pytest.fixture(scope="module")
def stages():
    """The variables before and after each stage of a run whose held-out stars are NaN, and its report."""
    patch = pytest.MonkeyPatch()
    patch.setattr(stages_module, "get_preset", lambda name: synthetic.CONFIG)
    said = []
    trainer = Pretraining(without_held_out(corpus()), CONFIG, say=said.append)
    made = [system_without_heads()]
    for stage in (trainer.train_backbone, trainer.train_autoencoder, trainer.align):
        made.append(stage(made[-1]))
    make_pool, pools = trainer.heads.feature_pool, []
    patch.setattr(trainer.heads, "feature_pool", lambda *given: pools.append(make_pool(*given)) or pools[0])
    final, stats = trainer.train_heads(made[-1])
    patch.undo()
    return [*made, final], stats, said, pools[0]


def system_without_heads():
    """What `initial` gives, without compiling the initialisers."""
    system = jax.tree.map(jnp.asarray, random_system(synthetic.CONFIG))
    return {name: {k: v for k, v in tree.items() if not k.startswith("mlp")} for name, tree in system.items()}


def test_a_run_starts_from_both_towers_and_the_decoders():
    trainer = Pretraining(corpus(), CONFIG)
    shapes, expected = jax.eval_shape(trainer.initial), system_without_heads()
    chex.assert_trees_all_equal_shapes_and_dtypes(shapes, expected)


def part(variables, *path):
    tree = variables["params"]
    for name in path:
        tree = tree[name]
    return tree


def changed(first, second):
    """Whether each leaf of two trees of one structure differs somewhere."""
    return [
        not np.array_equal(a, b) for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True)
    ]


class TestStages:
    def test_held_out_stars_leave_no_trace(self, stages):
        variables, stats, said, _ = stages
        for tree in (*variables, stats):
            assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(tree))
        losses = [float(line.split("loss ")[1].split()[0]) for line in said if "loss " in line]
        assert len(losses) == 5 * 2  # two chunks each of three stages and two heads
        assert np.isfinite(losses).all()
        scored = [line.split()[0] for line in said if "held-out sigma([Fe/H])" in line]
        assert sorted(set(scored)) == ["alignment", "backbone", "mlp1", "mlp2"]

    def test_each_stage_trains_its_own_part(self, stages):
        start, backbone, autoencoder, aligned, final = stages[0]
        assert any(changed(part(start, "lamost", "backbone"), part(backbone, "lamost", "backbone")))
        assert any(changed(part(backbone, "gaia_xp"), part(autoencoder, "gaia_xp")))
        assert all(changed(part(autoencoder, "lamost_decoder"), part(aligned, "lamost_decoder")))
        assert any(
            changed(part(autoencoder, "gaia_xp", "projection"), part(aligned, "gaia_xp", "projection"))
        )
        assert set(final["params"]) - set(aligned["params"]) == {"mlp1", "mlp2"}

    def test_what_a_stage_does_not_train_stays_bit_identical(self, stages):
        start, backbone, autoencoder, aligned, final = stages[0]
        for name in ("gaia_xp", "lamost_decoder", "gaia_xp_cross_decoder"):
            chex.assert_trees_all_equal(part(start, name), part(backbone, name))
        chex.assert_trees_all_equal(part(backbone, "lamost"), part(autoencoder, "lamost"))
        chex.assert_trees_all_equal(
            part(backbone, "gaia_xp", "projection"), part(autoencoder, "gaia_xp", "projection")
        )
        for path in FROZEN:
            chex.assert_trees_all_equal(part(autoencoder, *path), part(aligned, *path))
        for name in aligned["params"]:
            chex.assert_trees_all_equal(part(aligned, name), part(final, name))
        for name in aligned["batch_stats"]:
            chex.assert_trees_all_equal(aligned["batch_stats"][name], final["batch_stats"][name])

    def test_running_statistics_follow_in_their_stages_only(self, stages):
        start, _, autoencoder, aligned, final = (one["batch_stats"] for one in stages[0])
        chex.assert_trees_all_equal(start, autoencoder)
        assert all(changed(autoencoder, aligned))
        assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(final["mlp1"]))

    def test_the_result_is_a_foundation(self, stages, tmp_path):
        (*_, final), stats, *_ = stages
        lora.partition_labels(final["params"])  # no probe is left over: every leaf has a rule
        model = Foundation(config=synthetic.CONFIG, variables=final, stats=stats)
        pairs = corpus()
        for head in ("mlp1", "mlp2"):
            assert sorted(stats[head]) == ["feature_mean", "feature_std", "label_mean", "label_std"]
            predicted = model.predict(pairs.flux, head)
            # Four steps teach nothing, but the units are those of the labels.
            assert 3000 < np.median(predicted["teff"]) < 8000
        assert model.translate(pairs.flux, source="lamost", target="gaia_xp").shape == pairs.xp_flux.shape

    def test_heads_read_features_standardised_over_the_varied_spectra(self, stages):
        _, stats, _, (pools, labels) = stages
        for head, pool in pools.items():
            assert len(pool) == len(labels) == CONFIG.head_pool
            # float32 sums of 512 numbers
            np.testing.assert_allclose(stats[head]["feature_mean"], pool.mean(0), rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(stats[head]["feature_std"], pool.std(0), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path):
    def stop(text):
        if text.startswith("alignment 2/4"):
            raise KeyboardInterrupt

    whole = Pretraining(corpus(), CONFIG, say=lambda text: None).run()
    with pytest.raises(KeyboardInterrupt):
        Pretraining(corpus(), CONFIG, tmp_path, stop).run()
    said = []
    resumed = Pretraining(corpus(), CONFIG, tmp_path, said.append).run()
    assert [line for line in said if "resuming" in line] == [
        "backbone: resuming after step 4",
        "autoencoder: resuming after step 4",
        "alignment: resuming after step 2",
    ]
    chex.assert_trees_all_equal(resumed, whole)


@pytest.mark.slow
def test_it_learns(tmp_path):
    """A few hundred steps on noiseless low-rank stars predict [Fe/H] of stars that were held out."""
    stage = StageConfig(steps=300, batch=32, learning_rate=3e-3, chunk=300)
    calm = AugmentConfig(
        smoothing=(0.0, 0.0), shift=0.0, continuum=0.0, response=0.0, noise=(0.003, 0.01), gap_width=6
    )
    config = dataclasses.replace(
        CONFIG,
        held_out=0.2,
        augment=calm,
        head_augment=calm,
        backbone=stage,
        alignment=stage,
        heads=stage,
    )
    pairs = synthetic.corpus(120)
    variables, stats = Pretraining(pairs, config, say=lambda text: None).run()
    model = Foundation(config=synthetic.CONFIG, variables=variables, stats=stats)
    held_out = held_out_stars(pairs, config)
    for head in ("mlp1", "mlp2"):
        error = model.predict(pairs.flux[held_out], head)["fe_h"] - pairs.labels[held_out, 1]
        assert error.std() < 0.4 * pairs.labels[:, 1].std(), head  # the spread of the labels is 0.87


def test_rows_of_pairs_keep_together():
    pairs = corpus()[np.array([3, 1])]
    assert isinstance(pairs, Pairs)
    assert pairs.id.tolist() == ["star3", "star1"]
    np.testing.assert_array_equal(pairs.renditions, corpus().renditions[[3, 1]])
    np.testing.assert_array_equal(pairs.rendition_width, corpus().rendition_width)


def test_the_domain_ends_where_known_kinds_of_stars_begin():
    """Spectra of stars outside, as observed and rendered, give the domain a side of their name."""
    pairs = corpus()
    lines = np.ones(synthetic.PIXELS, np.float32)
    lines[::5] = 0.2  # unlike any star of the corpus
    others = np.broadcast_to(lines, (30, 2, synthetic.PIXELS)) + 0.01 * np.random.default_rng(0).normal(
        size=(30, 2, synthetic.PIXELS)
    )
    trainer = Pretraining(pairs, CONFIG, say=lambda text: None, outside={"others": others.astype(np.float32)})
    variables = trainer.initial()
    pools, _ = trainer.heads.feature_pool(variables, trainer.key)
    domain = trainer.heads.fit_domain(variables, pools["mlp1"], trainer.outside, trainer.key)
    again = trainer.heads.features(variables, jnp.asarray(others[:, 0], jnp.float32), None)["mlp1"]
    assert (domain.flags(again) == "others").mean() > 0.9
    assert (domain.flags(pools["mlp1"]) == "").mean() > 0.99  # 0.5% and 0.1% lie outside by construction
