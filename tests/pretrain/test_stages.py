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
from specjax.pretrain.batches import make_data
from specjax.pretrain.config import StageConfig
from specjax.pretrain.stages import Pretraining
from tests import synthetic
from tests.models.tiny import random_system
from tests.pretrain.short_run import CONFIG, corpus, held_out_stars, without_held_out

pytestmark = pytest.mark.usefixtures("quick_compilation")

FROZEN = [("lamost", "backbone"), ("gaia_xp", "backbone")]


@pytest.fixture(autouse=True)
def _tiny(monkeypatch):
    monkeypatch.setattr(stages_module, "get_preset", lambda name: synthetic.CONFIG)


@pytest.fixture(scope="module")
def stages():
    """Variables around each stage, stats, report and feature pool of a run whose held-out stars are NaN."""
    patch = pytest.MonkeyPatch()
    patch.setattr(stages_module, "get_preset", lambda name: synthetic.CONFIG)
    said = []
    trainer = Pretraining(make_data(without_held_out(corpus()), CONFIG), CONFIG, say=said.append)
    made = [system_without_heads()]
    for stage in (trainer.train_backbone, trainer.train_autoencoder, trainer.align):
        made.append(stage(made[-1]))
    make_pool, pools = trainer.heads.feature_pool, []
    patch.setattr(trainer.heads, "feature_pool", lambda *given: pools.append(make_pool(*given)) or pools[0])
    final, stats, _ = trainer.train_heads(made[-1])
    patch.undo()
    return [*made, final], stats, said, pools[0]


def system_without_heads():
    """Return variables as `initial` does, without compiling the initialisers."""
    system = jax.tree.map(jnp.asarray, random_system(synthetic.CONFIG))
    return {name: {k: v for k, v in tree.items() if not k.startswith("mlp")} for name, tree in system.items()}


def test_a_run_starts_from_both_towers_and_the_decoders():
    trainer = Pretraining(make_data(corpus(), CONFIG), CONFIG)
    shapes, expected = jax.eval_shape(trainer.initial), system_without_heads()
    chex.assert_trees_all_equal_shapes_and_dtypes(shapes, expected)


def part(variables, *path):
    tree = variables["params"]
    for name in path:
        tree = tree[name]
    return tree


def changed(first, second):
    """Return for each leaf whether the two trees differ in it."""
    return [
        not np.array_equal(a, b) for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True)
    ]


class TestStages:
    def test_held_out_stars_do_not_influence_the_training(self, stages):
        variables, stats, said, _ = stages
        chex.assert_tree_all_finite((variables, stats))
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

    def test_parts_that_a_stage_does_not_train_stay_bit_identical(self, stages):
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

    def test_running_statistics_change_in_their_stages_only(self, stages):
        start, _, autoencoder, aligned, final = (one["batch_stats"] for one in stages[0])
        chex.assert_trees_all_equal(start, autoencoder)
        assert all(changed(autoencoder, aligned))
        assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(final["mlp1"]))

    def test_the_result_is_a_foundation(self, stages, tmp_path):
        (*_, final), stats, *_ = stages
        lora.partition_labels(final["params"])  # every leaf has a rule: no auxiliary head is left
        model = Foundation(config=synthetic.CONFIG, variables=final, stats=stats)
        pairs = corpus()
        for head in ("mlp1", "mlp2"):
            scaling = {"feature_mean", "feature_std", "label_mean", "label_std"}
            assert stats[head].keys() == scaling | {"label_scatter"}
            predicted = model.predict(pairs.flux, head)
            # Four steps are too few to learn, but the units are those of the labels.
            assert 3000 < np.median(predicted["teff"]) < 8000
        assert model.translate(pairs.flux, source="lamost", target="gaia_xp").shape == pairs.xp_flux.shape

    def test_heads_read_features_standardised_over_the_augmented_spectra(self, stages):
        _, stats, _, (pools, truth) = stages
        chex.assert_shape(truth["labels"], (CONFIG.head_pool, 2))
        chex.assert_shape(truth["weight"], (CONFIG.head_pool,))
        for head, pool in pools.items():
            assert len(pool) == CONFIG.head_pool
            # float32 sums of 512 numbers
            np.testing.assert_allclose(stats[head]["feature_mean"], pool.mean(0), rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(stats[head]["feature_std"], pool.std(0), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path):
    def stop(text):
        if text.startswith("alignment 2/4"):
            raise KeyboardInterrupt

    whole = Pretraining(make_data(corpus(), CONFIG), CONFIG).run()
    with pytest.raises(KeyboardInterrupt):
        Pretraining(make_data(corpus(), CONFIG), CONFIG, tmp_path, stop).run()
    said = []
    resumed = Pretraining(make_data(corpus(), CONFIG), CONFIG, tmp_path, said.append).run()
    assert [line for line in said if "resuming" in line] == [
        "backbone: resuming after step 4",
        "autoencoder: resuming after step 4",
        "alignment: resuming after step 2",
    ]
    chex.assert_trees_all_equal(resumed[:2], whole[:2])
    chex.assert_trees_all_equal(resumed.ood.to_arrays(), whole.ood.to_arrays())


@pytest.mark.slow
def test_the_stages_learn(tmp_path):
    """After a few hundred steps on nearly noiseless stars the heads predict [Fe/H] of held-out stars."""
    stage = StageConfig(steps=300, batch=32, learning_rate=3e-3, chunk=300)
    weak = AugmentConfig(
        smoothing=(0.0, 0.0), shift=0.0, continuum=0.0, response=0.0, noise=(0.003, 0.01), gap_width=6
    )
    config = dataclasses.replace(
        CONFIG,
        held_out=0.2,
        augment=weak,
        head_augment=weak,
        backbone=stage,
        alignment=stage,
        heads=stage,
    )
    pairs = synthetic.corpus(120)
    variables, stats, _ = Pretraining(make_data(pairs, config), config).run()
    model = Foundation(config=synthetic.CONFIG, variables=variables, stats=stats)
    held_out = held_out_stars(pairs, config)
    for head in ("mlp1", "mlp2"):
        error = model.predict(pairs.flux[held_out], head)["fe_h"] - pairs.labels[held_out, 1]
        assert error.std() < 0.4 * pairs.labels[:, 1].std(), head  # the labels scatter by 0.87


@pytest.mark.slow
def test_out_of_range_stars_get_their_flag():
    """Out-of-range stars, as observed and degraded, define a flag with the name of their kind."""
    pairs = corpus()
    lines = np.ones(synthetic.PIXELS, np.float32)
    lines[::5] = 0.2  # unlike any star of the corpus
    others = np.broadcast_to(lines, (30, 2, synthetic.PIXELS)) + 0.01 * np.random.default_rng(0).normal(
        size=(30, 2, synthetic.PIXELS)
    )
    trainer = Pretraining(
        make_data(pairs, CONFIG), CONFIG, out_of_range={"others": others.astype(np.float32)}
    )
    variables = trainer.initial()
    pools, _ = trainer.heads.feature_pool(variables, trainer.key)
    ood = trainer.heads.fit_ood(variables, pools["mlp1"], trainer.out_of_range, trainer.key)
    again = trainer.heads.features(variables, jnp.asarray(others[:, 0], jnp.float32), None)["mlp1"]
    assert (ood.flags(again) == "others").mean() > 0.9
    assert (ood.flags(pools["mlp1"]) == "good").mean() > 0.99  # 0.5% and 0.1% lie outside by construction
