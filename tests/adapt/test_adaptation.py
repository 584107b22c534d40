import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from specjax import lora
from specjax.adapt.adaptation import Adaptation
from specjax.adapt.configuration import PAPER, Configuration
from specjax.adapt.forward import predict_label, standardise_features
from specjax.adapt.heads import Heads
from specjax.adapt.objectives import initial_factors
from specjax.adapt.selection import fold_of, stars_of_folds
from specjax.adapt.splits import draw_splits
from specjax.errors import ConfigError, DataError, ModelError
from specjax.train.optimizer import GroupSchedule
from tests import synthetic

pytestmark = pytest.mark.usefixtures("quick_compilation")

CONFIG = synthetic.ADAPT
OTHERS = ("lora1", "lora3", "lora3+lora4", "lora2+lora4", "lora1+lora2+lora4")
SPLITS = draw_splits(40, seeds=3, train=20, validate=4)
# The same arithmetic in another batch shape or with merged factors, in labels of order 1: float32 rounding of
# a network whose random weights amplify it.
CLOSE = {"rtol": 1e-4, "atol": 2e-4}


def make(target=None, splits=SPLITS, say=lambda text: None, **changes):
    config = dataclasses.replace(CONFIG, seeds=len(splits), **changes)
    return Adaptation(synthetic.foundation(), target or synthetic.target(), splits, config, say)


def run(adaptation, name):
    return adaptation.run(Configuration.parse(name))


def zero_shot_of(name):
    return Configuration.parse(name).zero_shot.name


def predict_again(result, target=None, model=None):
    """Predict the labelled stars with the factors of a result."""
    labelled = (target or synthetic.target()).labelled
    heads = result.configuration.heads
    return predict_label(model or synthetic.foundation(), heads, result.adapters, labelled, "fe_h")


@pytest.fixture(scope="module")
def said():
    return []


@pytest.fixture(scope="module")
def results(said):
    adaptation = make(say=said.append)
    return {name: run(adaptation, name) for name in (*PAPER, *OTHERS)}


def initial(towers, group):
    return initial_factors(towers.model.config, group)(towers.keys, towers.model.params)


def rows_of(part, seed):
    return getattr(SPLITS, part)[seed]


def assert_same(first, second, seeds=slice(None), others=slice(None)):
    """Bit-identical predictions, choices and factors."""
    np.testing.assert_array_equal(first.predictions[seeds], second.predictions[others])
    for head, chosen in first.chosen.items():
        for name, values in chosen.items():
            np.testing.assert_array_equal(values[seeds], second.chosen[head][name][others])
    chex.assert_trees_all_equal(
        jax.tree.map(lambda leaf: leaf[seeds], first.adapters),
        jax.tree.map(lambda leaf: leaf[others], second.adapters),
    )


class TestResults:
    def test_shapes_and_groups(self, results):
        for name, result in results.items():
            assert result.configuration == Configuration.parse(name)
            assert result.predictions.shape == (3, 40)
            assert result.predictions.dtype == np.float64
            assert np.isfinite(result.predictions).all()
            assert tuple(result.chosen) == result.configuration.heads
            assert {len(leaf) for leaf in jax.tree.leaves(result.adapters)} <= {3}
            found = set(jax.tree.leaves(lora.partition_labels(result.adapters)))
            assert found == set(result.configuration.groups), name

    @pytest.mark.parametrize("head", ["mlp1", "mlp2"])
    def test_zero_shot_is_the_foundation_as_it_is(self, results, head):
        expected = synthetic.foundation().predict(synthetic.target().labelled, head)["fe_h"]
        found = results[f"zero-shot-{head}"].predictions
        np.testing.assert_allclose(found, np.tile(expected, (3, 1)), **CLOSE)
        np.testing.assert_array_equal(found[1:], found[:-1])  # there is nothing to differ in

    @pytest.mark.parametrize("name", [n for n in (*PAPER, *OTHERS) if n.startswith("lora")])
    def test_saved_factors_give_the_predictions_again(self, results, name):
        np.testing.assert_allclose(predict_again(results[name]), results[name].predictions, **CLOSE)

    def test_adapting_helps_where_the_model_is_far_off(self, results):
        truth = synthetic.target().truth
        for name in ("lora2", "lora4", "lora1+lora2", "lora1+lora3+lora4", "lora2+lora4"):
            for seed in range(3):
                test = rows_of("test", seed)
                before, after = (
                    np.mean((results[n].predictions[seed, test] - truth[test]) ** 2)
                    for n in (zero_shot_of(name), name)
                )
                assert after < 0.8 * before, (name, seed)
            assert all((chosen["head"] > 0).all() for chosen in results[name].chosen.values())

    def test_choices_are_among_what_was_offered(self, results):
        for result in results.values():
            for chosen in result.chosen.values():
                assert set(chosen["tower"]) <= {0.0, 1.0}
                assert set(chosen["head"]) <= {0.0, 0.5, 1.0}
                assert set(chosen["step"]) <= {0.0, 1.0, 2.0}
                np.testing.assert_array_equal(chosen["head"] > 0, chosen["step"] > 0)

    def test_seeds_differ(self, results):
        for name in ("lora2", "lora4"):
            assert len(np.unique(results[name].predictions, axis=0)) == 3

    def test_a_head_without_towers_is_the_same_in_every_configuration(self, results):
        """The mean of two heads where both are adapted."""
        both = results["lora2+lora4"].predictions
        mean = (results["lora2"].predictions + results["lora4"].predictions) / 2
        np.testing.assert_array_equal(both, mean)

    def test_a_head_is_adapted_to_the_towers_as_they_are_once(self, monkeypatch):
        adaptation, fitted = make(), []
        fit_head = Heads._fit_head
        monkeypatch.setattr(Heads, "_fit_head", lambda *args: fitted.append(args[2]) or fit_head(*args))
        for name in ("lora2", "lora1+lora2", "lora1+lora2"):
            run(adaptation, name)
        assert fitted == ["lora2"] * 3  # as they are, and LoRA1's in two runs

    def test_towers_are_trained_once_for_all_configurations(self, results, said):
        lines = [line for line in said if "unlabelled spectra" in line]
        # lora1; lora3 upon it; lora3 alone
        assert len(lines) == 3, lines


@pytest.mark.parametrize("seed", [0, 2])
def test_a_seed_alone_equals_the_same_seed_among_several(results, seed):
    name = "lora1+lora3+lora4"
    result = run(make(splits=SPLITS[seed : seed + 1]), name)
    np.testing.assert_allclose(result.predictions[0], results[name].predictions[seed], **CLOSE)
    for key, values in result.chosen["mlp2"].items():
        assert values[0] == results[name].chosen["mlp2"][key][seed]


@pytest.mark.parametrize("name", ["lora2", "lora1+lora3+lora4", "lora1+lora2+lora4"])
@pytest.mark.parametrize("garbage", [np.nan, 1e6])
def test_labels_of_test_and_validation_stars_are_never_used(results, name, garbage):
    """Nor their [Fe/H] for the subsets: without them each seed's predictions and choices are the same."""
    for seed in range(3):
        truth = synthetic.target().truth.copy()
        truth[np.concatenate([rows_of("test", seed), rows_of("validate", seed)])] = garbage
        hidden = synthetic.target(truth=truth, fe_h=np.full(40, garbage))
        after = run(make(hidden), name)
        assert_same(results[name], after, slice(seed, seed + 1), slice(seed, seed + 1))


def test_spectra_of_test_stars_change_nothing_but_their_own_predictions(results):
    name, seed = "lora1+lora3+lora4", 1
    test = rows_of("test", seed)
    grid = synthetic.target().labelled
    flux = grid.flux.copy()
    flux[test] = 1 + 0.3 * np.random.default_rng(0).normal(size=flux[test].shape)
    target = synthetic.target(labelled=dataclasses.replace(grid, flux=flux))
    after = run(make(target), name)
    others = np.setdiff1d(np.arange(40), test)
    np.testing.assert_array_equal(after.predictions[seed, others], results[name].predictions[seed, others])
    assert (after.predictions[seed, test] != results[name].predictions[seed, test]).all()


def test_training_labels_are_used(results):
    target = synthetic.target()
    truth = target.truth.copy()
    truth[rows_of("train", 0)] += 1.0
    moved = run(make(dataclasses.replace(target, truth=truth)), "lora4").predictions[0]
    change = moved - results["lora4"].predictions[0]
    assert 0.3 < np.median(change) < 1.5  # most of a shift of 1 dex is followed


class TestNotAtAll:
    """Every way to adapt by nothing is the zero-shot row, bit for bit."""

    @pytest.mark.parametrize("name", ["lora2", "lora1+lora3+lora4", "lora1+lora2+lora4", "lora3"])
    def test_is_zero_shot_exactly(self, results, name):
        result = run(make(head_shrinkage=(0.0,), tower_shrinkage=(0.0,)), name)
        heads = result.configuration.heads
        expected = np.mean([results[f"zero-shot-{head}"].predictions for head in heads], axis=0)
        np.testing.assert_array_equal(result.predictions, expected)
        for chosen in result.chosen.values():
            assert not any(values.any() for values in chosen.values())
        for path, leaf in jax.tree_util.tree_leaves_with_path(result.adapters):
            if path[-1].key == "lora_b":
                assert not leaf.any()

    def test_it_is_always_among_the_choices(self, results):
        """Also where the user lists only real steps."""
        wild = GroupSchedule(learning_rate=1e30)
        stages = {
            name: dataclasses.replace(getattr(CONFIG, name), schedule=wild) for name in ("lora1", "head")
        }
        offered = make(head_shrinkage=(1.0,), tower_shrinkage=(1.0,), **stages)
        for name in ("lora4", "lora1", "lora1+lora2"):
            np.testing.assert_array_equal(
                run(offered, name).predictions, results[zero_shot_of(name)].predictions
            )

    def test_fresh_factors_in_the_towers_change_nothing(self):
        towers = make().towers
        start = lora.combine(*(initial(towers, group) for group in ("lora1", "lora3")))
        for head in ("mlp1", "mlp2"):
            base, fresh = (towers.features(head, factors) for factors in ({}, start))
            np.testing.assert_allclose(fresh, jnp.broadcast_to(base, fresh.shape), **CLOSE)

    def test_two_heads_share_the_scale_of_the_towers(self, results):
        """Whatever each would choose alone: there is one set of tower factors to save."""
        alone = {head: [] for head in ("mlp1", "mlp2")}
        for shift in (0.0, 0.5, 1.0):
            truth = synthetic.target().truth + shift
            adaptation = make(synthetic.target(truth=truth), tower_shrinkage=(0.0, 0.25, 0.5, 1.0))
            for name, head in (("lora1+lora2", "mlp1"), ("lora1+lora4", "mlp2")):
                alone[head].append(run(adaptation, name).chosen[head]["tower"])
            both = run(adaptation, "lora1+lora2+lora4")
            np.testing.assert_array_equal(both.chosen["mlp1"]["tower"], both.chosen["mlp2"]["tower"])
            np.testing.assert_array_equal(both.chosen["mlp2"]["tower"], alone["mlp2"][-1])
            np.testing.assert_allclose(predict_again(both), both.predictions, **CLOSE)
        assert (np.array(alone["mlp1"]) != np.array(alone["mlp2"])).any()  # the case is real

    def test_training_that_diverges_is_not_chosen(self, results):
        wild = GroupSchedule(learning_rate=1e30)
        result = run(make(head=dataclasses.replace(CONFIG.head, schedule=wild)), "lora2")
        np.testing.assert_array_equal(result.predictions, results["zero-shot-mlp1"].predictions)
        np.testing.assert_allclose(predict_again(result), result.predictions, **CLOSE)


class TestCrossValidation:
    def test_predictions_of_a_fold_do_not_see_its_labels(self):
        known = make()._head_candidates("mlp2", "lora4", {}, 0.0)
        truth = synthetic.target().truth.copy()
        fold = np.arange(20) % CONFIG.folds == 2
        truth[SPLITS.train[0][fold]] = 5.0
        changed = make(synthetic.target(truth=truth))._head_candidates("mlp2", "lora4", {}, 0.0)
        assert known.predictions.shape == (3, 5, 40)  # nothing, and two shrinkages twice
        assert known.out_of_fold.shape == (3, 5, 20)
        np.testing.assert_array_equal(changed.out_of_fold[0][:, fold], known.out_of_fold[0][:, fold])
        assert (changed.out_of_fold[0][1:, ~fold] != known.out_of_fold[0][1:, ~fold]).all()
        assert (changed.predictions[0][1:] != known.predictions[0][1:]).any()
        np.testing.assert_array_equal(changed.predictions[:, 0], known.predictions[:, 0])

    @pytest.mark.parametrize(("count", "folds"), [(20, 5), (23, 5), (3, 5), (7, 2)])
    def test_stars_that_a_fold_leaves_out(self, count, folds):
        left_out, star = stars_of_folds(count, folds), np.arange(count)
        np.testing.assert_array_equal(left_out[fold_of(count, folds), star // folds], star)

    def test_folds_part_the_training_stars(self):
        adaptation = make()
        features = standardise_features(adaptation.model, "mlp1", adaptation.towers.features("mlp1", {}))
        features = jnp.broadcast_to(features, (3, *features.shape[1:]))
        data = adaptation.heads._training_data("mlp1", features)
        weights = np.asarray(data["weight"]).reshape(3, 6, 20)
        np.testing.assert_array_equal(weights[:, 0], 1)
        np.testing.assert_array_equal((1 - weights[:, 1:]).sum(axis=1), 1)  # left out once
        np.testing.assert_array_equal((1 - weights[:, 1:]).sum(axis=2), 4)
        x = np.asarray(data["x"]).reshape(3, 6, 20, -1)
        for seed, rows in enumerate(SPLITS.train):
            np.testing.assert_array_equal(x[seed], np.broadcast_to(features[seed][rows], x[seed].shape))


class TestUnlabelled:
    def test_pairs_without_gaia_xp_do_not_take_part(self):
        target = synthetic.target()
        xp = target.unlabelled_xp
        mask = xp.mask.copy()
        mask[::3] = True
        results = []
        for filler in (0.0, 1e30):
            part = dataclasses.replace(xp, flux=np.where(mask, filler, xp.flux), mask=mask)
            results.append(run(make(dataclasses.replace(target, unlabelled_xp=part)), "lora3"))
        assert_same(*results)

    @pytest.mark.parametrize(
        ("target", "names", "message"),
        [
            (synthetic.target(unlabelled=0), ["lora1", "lora3", "lora1+lora2"], "unlabelled"),
            (synthetic.target(unlabelled=1), ["lora1"], "unlabelled"),
            (synthetic.target(xp=False), ["lora3", "lora1+lora3+lora4"], "LoRA3 needs Gaia XP"),
        ],
    )
    def test_what_is_missing_is_said(self, target, names, message):
        for name in names:
            with pytest.raises(DataError, match=message) as caught:
                run(make(target), name)
            assert "\n" not in str(caught.value)

    def test_a_target_without_gaia_xp_serves_all_else(self, results):
        adaptation = make(synthetic.target(xp=False))
        for name in ("lora1+lora2", "lora4"):
            assert_same(run(adaptation, name), results[name])


def test_a_label_that_the_model_does_not_predict():
    with pytest.raises(ConfigError, match="the model predicts teff, fe_h, not 'logg'") as caught:
        make(synthetic.target(label="logg"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("lost", "names", "message"),
    [
        ("mlp2", ["lora4", "zero-shot-mlp2", "lora3"], "no head 'mlp2'"),
        ("mlp1", ["lora2", "zero-shot-mlp1", "lora1+lora2"], "no head 'mlp1'"),
        ("gaia_xp", ["lora3+lora4"], "no Gaia XP tower"),
    ],
)
def test_a_model_without_the_part_that_a_configuration_needs(lost, names, message):
    model = synthetic.foundation()
    params = {name: tree for name, tree in model.params.items() if name != lost}
    bare = dataclasses.replace(model, variables={**model.variables, "params": params})
    for name in names:
        with pytest.raises(ModelError, match=message) as caught:
            run(Adaptation(bare, synthetic.target(), SPLITS, CONFIG), name)
        assert "\n" not in str(caught.value)


def test_a_bare_encoder_has_nothing_to_adapt():
    model = synthetic.foundation()
    params = {"lamost": {"backbone": model.params["lamost"]["backbone"]}}
    bare = dataclasses.replace(model, variables={"params": params})
    for name in PAPER:
        with pytest.raises(ModelError, match="no head"):
            run(Adaptation(bare, synthetic.target(), SPLITS, CONFIG), name)


def test_statistics_that_a_model_lacks_count_as_zero_and_one():
    model = dataclasses.replace(synthetic.foundation(), stats={})
    found = run(Adaptation(model, synthetic.target(), SPLITS, CONFIG), "zero-shot-mlp2").predictions
    expected = model.predict(synthetic.target().labelled, "mlp2")["fe_h"]
    np.testing.assert_allclose(found, np.tile(expected, (3, 1)), **CLOSE)
