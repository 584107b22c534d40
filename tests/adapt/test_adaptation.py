import dataclasses

import chex
import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from specjax import lora
from specjax.adapt.adaptation import Adaptation
from specjax.adapt.candidates import Scorer
from specjax.adapt.configuration import PAPER, Configuration
from specjax.adapt.forward import predict_label
from specjax.adapt.objectives import Objective
from specjax.adapt.selection import fold_of, stars_of_folds
from specjax.adapt.splits import draw_splits
from specjax.adapt.stage import Stage, Trainer
from specjax.adapt.start import initial_leaves
from specjax.errors import ConfigError, DataError, ModelError
from specjax.train.optimizer import GroupSchedule
from tests import synthetic

pytestmark = pytest.mark.usefixtures("quick_compilation")

CONFIG = synthetic.ADAPT
OTHERS = ("lora1", "lora3", "lora2+lora4", "lora1+lora2+lora4", "residual-mlp1", "scratch-mlp2", "full-mlp2")
SEQUENTIAL = ("lora1", "lora3", "lora1+lora2", "lora1+lora3+lora4")
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


@pytest.fixture(scope="module")
def sequential():
    said = []
    adaptation = make(say=said.append, objective="sequential")
    return {name: run(adaptation, name) for name in SEQUENTIAL}, said


def rows_of(part, seed):
    return getattr(SPLITS, part)[seed]


def assert_same(first, second, seeds=slice(None), others=slice(None)):
    """Bit-identical predictions, choices and factors."""
    np.testing.assert_array_equal(first.predictions[seeds], second.predictions[others])
    for name, values in first.chosen.items():
        np.testing.assert_array_equal(values[seeds], second.chosen[name][others])
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
            assert {len(values) for values in result.chosen.values()} == {3}
            assert {len(leaf) for leaf in jax.tree.leaves(result.adapters)} <= {3}
            found = lora.partition_labels(result.adapters, result.configuration.groups)
            assert set(jax.tree.leaves(found)) == set(result.configuration.groups), name

    @pytest.mark.parametrize("head", ["mlp1", "mlp2"])
    def test_zero_shot_is_the_foundation_as_it_is(self, results, head):
        expected = synthetic.foundation().predict(synthetic.target().labelled, head)["fe_h"]
        found = results[f"zero-shot-{head}"].predictions
        np.testing.assert_allclose(found, np.tile(expected, (3, 1)), **CLOSE)
        np.testing.assert_array_equal(found[1:], found[:-1])  # there is nothing to differ in

    @pytest.mark.parametrize("name", [n for n in (*PAPER, *OTHERS) if not n.startswith("zero")])
    def test_saved_factors_give_the_predictions_again(self, results, name):
        np.testing.assert_allclose(predict_again(results[name]), results[name].predictions, **CLOSE)

    def test_adapting_helps_where_the_model_is_far_off(self, results):
        truth = synthetic.target().truth
        for name in (n for n in results if not n.startswith("zero")):
            for seed in range(3):
                test = rows_of("test", seed)
                before, after = (
                    np.mean((results[n].predictions[seed, test] - truth[test]) ** 2)
                    for n in (zero_shot_of(name), name)
                )
                assert after < 0.8 * before, (name, seed)
            assert (results[name].chosen["step"] > 0).all()

    def test_choices_are_among_what_was_offered(self, results):
        for result in results.values():
            chosen = result.chosen
            assert set(chosen["tower"]) <= {0.0, 0.5, 1.0}
            assert set(chosen["head"]) <= {0.0, 0.5, 1.0}
            assert set(chosen["step"]) <= {0.0, 10.0, 20.0}
            nothing = (chosen["head"] == 0) & (chosen["tower"] == 0)
            np.testing.assert_array_equal(nothing, chosen["step"] == 0)

    def test_seeds_differ(self, results):
        for name in ("lora2", "lora4"):
            assert len(np.unique(results[name].predictions, axis=0)) == 3


class TestSequence:
    """The paper's stages, one after the other."""

    def test_saved_factors_give_the_predictions_again(self, sequential):
        for result in sequential[0].values():
            np.testing.assert_allclose(predict_again(result), result.predictions, **CLOSE)
            found = set(jax.tree.leaves(lora.partition_labels(result.adapters)))
            assert found == set(result.configuration.groups)

    def test_towers_are_trained_once_for_all_configurations(self, sequential):
        lines = [line for line in sequential[1] if line.startswith(("tilted: lora1:", "tilted: lora3:"))]
        assert len(lines) == 3, lines  # lora1; lora3 upon it; lora3 alone

    def test_the_tower_is_trained_without_labels(self, sequential):
        """Other labels change what is selected, and nothing that LoRA1 and LoRA3 have learned."""
        target = synthetic.target()
        truth = -target.truth - 1
        other = make(dataclasses.replace(target, truth=truth), objective="sequential")
        names = ("lora1", "lora3")
        found = [a._groups[0]._tower_factors(names) for a in (other, make(objective="sequential"))]
        chex.assert_trees_all_equal(*found)
        joint = run(make(dataclasses.replace(target, truth=truth)), "lora1").adapters
        assert not np.array_equal(jax.tree.leaves(joint)[0], jax.tree.leaves(found[0])[0])

    def test_whole_towers_cannot_be_trained_in_sequence(self):
        with pytest.raises(ConfigError, match="only low-rank factors"):
            run(make(objective="sequential"), "full-mlp1")


class TestOneProgram:
    """A configuration is one program: its groups are trained together, each with its own optimizer state."""

    @staticmethod
    def caught(monkeypatch, name, **changes):
        """The arguments of every `fit` of a configuration."""
        from specjax.adapt import stage

        calls, fit = [], stage.fit

        def catch(loss, optimizer, **given):
            calls.append((optimizer, given))
            return fit(loss, optimizer, **given)

        monkeypatch.setattr(stage, "fit", catch)
        run(make(**changes), name)
        return calls

    @pytest.mark.parametrize("name", ["lora1+lora3+lora4", "full-mlp1"])
    def test_its_multi_transform_has_a_state_for_each_group(self, monkeypatch, name):
        optimizer, given = self.caught(monkeypatch, name)[-1]
        trainable = jax.tree.map(lambda leaf: leaf[0], given["trainable"])
        groups = Configuration.parse(name).groups
        labels = set(jax.tree.leaves(lora.partition_labels(trainable, groups)))
        assert labels == set(groups)
        states = optimizer.init(trainable).inner_states
        assert set(states) == {*groups, "frozen"}
        for group in groups:
            moments = sum(leaf.size for leaf in jax.tree.leaves(states[group]) if leaf.ndim)
            assert moments == 2 * lora.count_parameters(lora.split(trainable, [group])[1])
        assert not [leaf for leaf in jax.tree.leaves(states["frozen"]) if leaf.ndim]

    def test_finer_partitions_need_no_other_code(self, monkeypatch):
        joint = (dataclasses.replace(CONFIG.joint[0], freeze_a=True),)
        optimizer, given = self.caught(monkeypatch, "lora1+lora2", joint=joint)[-1]
        states = optimizer.init(jax.tree.map(lambda leaf: leaf[0], given["trainable"])).inner_states
        assert set(states) == {"lora1/b", "lora2/b", "frozen"}
        result = run(make(joint=joint), "lora1")
        fresh = run(make(joint=joint, splits=SPLITS), "lora1")
        for path, leaf in jax.tree_util.tree_leaves_with_path(result.adapters):
            if path[-1].key == "lora_a":  # as drawn, within 1/sqrt(inputs)
                assert np.abs(leaf).max() <= leaf.shape[1] ** -0.5
        assert_same(result, fresh)

    def test_every_group_learns(self, monkeypatch):
        fits, train = [], Trainer.train
        monkeypatch.setattr(
            Trainer, "train", lambda *given, **options: fits.append(train(*given, **options)) or fits[-1]
        )
        run(make(), "lora1+lora3+lora4")
        for path, leaf in jax.tree_util.tree_leaves_with_path(fits[-1].leaves):
            if path[-1].key == "lora_b":
                assert (np.abs(leaf).max(axis=tuple(range(3, leaf.ndim))) > 1e-4).all(), path

    def test_ranks_by_layer_reach_the_factors_and_the_level_that_is_cached(self, monkeypatch):
        ranks = (("q_proj|kv_proj", 0), ("out_proj", 1))
        result = run(make(ranks=ranks), "lora1+lora2")
        attention = result.adapters["lamost"]["backbone"]["blocks_0"]["attention"]
        assert set(attention) == {"out_proj"}
        assert attention["out_proj"]["lora_a"].shape[-1] == 1
        np.testing.assert_allclose(predict_again(result), result.predictions, **CLOSE)

    @pytest.mark.parametrize("term", ["masked", "contrastive", "anchor"])
    def test_each_term_of_the_objective_takes_part(self, results, term):
        stage = dataclasses.replace(
            CONFIG.joint[0], objective=dataclasses.replace(CONFIG.joint[0].objective, **{term: 1.0})
        )
        result = run(make(joint=(stage,)), "lora1+lora3+lora4")
        assert (result.predictions != results["lora1+lora3+lora4"].predictions).any()
        np.testing.assert_allclose(predict_again(result), result.predictions, **CLOSE)

    def test_a_strong_anchor_keeps_the_features(self):
        def moved(weight):
            objective = dataclasses.replace(CONFIG.joint[0].objective, anchor=weight)
            stage = dataclasses.replace(CONFIG.joint[0], objective=objective)
            result = run(make(joint=(stage,), tower_scales=(1.0,)), "lora1")
            model, target = synthetic.foundation(), synthetic.target()
            factors = jax.tree.map(lambda leaf: leaf[0], result.adapters)
            base, adapted = (m.mean_token(target.labelled) for m in (model, model.adapted(factors)))
            return np.linalg.norm(adapted - base)

        assert moved(1e3) < 0.5 * moved(0.0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 2])
def test_a_seed_alone_equals_the_same_seed_among_several(results, seed):
    name = "lora1+lora3+lora4"
    result = run(make(splits=SPLITS[seed : seed + 1]), name)
    np.testing.assert_allclose(result.predictions[0], results[name].predictions[seed], **CLOSE)
    for key, values in result.chosen.items():
        assert values[0] == results[name].chosen[key][seed]


@pytest.mark.parametrize("name", ["lora2", "lora1+lora3+lora4", "lora1+lora2+lora4"])
@pytest.mark.parametrize("garbage", [np.nan, 1e6])
def test_labels_of_test_stars_are_never_used(results, name, garbage):
    """Nor their [Fe/H] for the subsets: without them each seed's predictions and choices are the same."""
    for seed in range(3):
        truth = synthetic.target().truth.copy()
        truth[rows_of("test", seed)] = garbage
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


class TestWeights:
    @pytest.mark.parametrize("name", ["lora2", "lora1+lora2"])
    def test_equal_weights_are_none(self, results, name):
        weighted = synthetic.target(weight=np.full(40, 7.0))
        assert_same(results[name], run(make(weighted), name))

    def test_stars_of_hardly_any_weight_are_not_listened_to(self):
        """Neither in the training nor in the selection: their labels may be anything."""
        target, weight = synthetic.target(), np.ones(40)
        weight[rows_of("train", 0)[:8]] = 1e-6

        def difference(told):
            found = []
            for error in (3.0, -3.0):
                truth = target.truth + np.where(weight < 1, error, 0.0)
                wrong = dataclasses.replace(target, truth=truth, weight=weight if told else None)
                found.append(run(make(wrong, SPLITS[:1]), "lora2").predictions)
            return np.abs(found[0] - found[1]).mean()

        # Not zero, as Adam divides the gradient by its size; 1% here.
        assert difference(told=True) < 0.05 * difference(told=False)


class TestNotAtAll:
    """Every way to adapt by nothing is the zero-shot row, bit for bit."""

    @pytest.mark.parametrize("name", ["lora2", "lora1+lora3+lora4", "lora1+lora2+lora4", "lora3"])
    def test_is_zero_shot_exactly(self, results, name):
        result = run(make(head_scales=(0.0,), tower_scales=(0.0,)), name)
        heads = result.configuration.heads
        expected = np.mean([results[f"zero-shot-{head}"].predictions for head in heads], axis=0)
        np.testing.assert_array_equal(result.predictions, expected)
        assert not any(values.any() for values in result.chosen.values())
        for path, leaf in jax.tree_util.tree_leaves_with_path(result.adapters):
            if path[-1].key == "lora_b":
                assert not leaf.any()

    def test_it_is_always_among_the_choices(self, results):
        """Training that diverged is not chosen, and leaves nothing behind."""
        wild = GroupSchedule(learning_rate=1e30)
        stages = {"lora1": dataclasses.replace(CONFIG.lora1, tower=wild)} | {
            name: (dataclasses.replace(getattr(CONFIG, name)[0], tower=wild, head=wild),)
            for name in ("head", "joint")
        }
        for objective in ("joint", "sequential"):
            offered = make(objective=objective, **stages)
            for name in ("lora4", "lora1", "lora1+lora2", "full-mlp1"):
                if objective == "sequential" and name.startswith("full"):
                    continue
                result = run(offered, name)
                np.testing.assert_array_equal(result.predictions, results[zero_shot_of(name)].predictions)
                np.testing.assert_allclose(predict_again(result), result.predictions, **CLOSE)

    def test_fresh_leaves_are_the_model_as_it_is(self):
        """Factors, a residual head and copies of the model's leaves; a head from scratch is another one."""
        adaptation = make()
        for name in ("lora1+lora2", "lora1+lora3+lora4", "residual-mlp1", "full-mlp2", "scratch-mlp1"):
            configuration = Configuration.parse(name)
            start = initial_leaves(adaptation.model.config, configuration)
            leaves = start(adaptation._groups[0].trainer.keys, adaptation.model.variables)
            found = predict_label(
                adaptation.model, configuration.heads, leaves, synthetic.target().labelled, "fe_h"
            )
            base = adaptation._as_it_is(configuration.heads)
            same = np.allclose(found, np.tile(base, (len(found), 1)), **CLOSE)
            assert same == (not configuration.from_scratch), name


def test_heads_are_trained_once_for_all_configurations():
    said = []
    adaptation = make(say=said.append)
    for name in ("lora2", "lora1+lora2"):
        adaptation.run(Configuration.parse(name))
    trained = [line.split(": ")[1] for line in said if "loss" in line]
    assert trained == ["lora2"] * len(CONFIG.head) + ["lora1+lora2"] * len(CONFIG.joint)


class TestCrossValidation:
    @staticmethod
    def unseen(target, name):
        adaptation, configuration = make(target, folds=2), Configuration.parse(name)
        (group,) = adaptation._groups
        fits, _ = group.fits(configuration)
        scorer = Scorer(adaptation.model, target, group.splits, adaptation._as_it_is(configuration.heads))
        return scorer.candidates(configuration.heads, fits, (0.5, 1.0), (0.5, 1.0))

    @pytest.mark.parametrize("name", ["lora4", "lora1+lora2"])
    def test_predictions_of_a_fold_do_not_see_its_labels(self, name):
        """Nor those of validation stars; the labels of the other fold change them."""
        known = self.unseen(synthetic.target(), name)
        truth = synthetic.target().truth.copy()
        fold = fold_of(20, 2) == 1
        truth[SPLITS.train[0][fold]] = 5.0
        truth[SPLITS.validate[0]] = 7.0
        changed = self.unseen(synthetic.target(truth=truth), name)
        # as it is, the heads' training and, with LoRA1, that of all: states times factors
        count = 1 + 2 * 2 + (2 * 2 * 2 if "lora1" in name else 0)
        assert known.unseen.shape == (4, count, 24)  # three seeds, in programs for four
        left_out = np.concatenate([fold, np.zeros(4, bool)])
        np.testing.assert_array_equal(changed.unseen[0][:, left_out], known.unseen[0][:, left_out])
        seen = np.concatenate([~fold, np.zeros(4, bool)])
        assert (changed.unseen[0][1:, seen] != known.unseen[0][1:, seen]).all()

    def test_validation_stars_take_part_in_the_selection(self):
        """If more of them contradict the training stars than these are, nothing is adapted."""
        splits = draw_splits(40, seeds=1, train=10, validate=25)
        truth, rows = synthetic.target().truth.copy(), splits.validate[0]
        base = make()._as_it_is(("mlp1",))[rows]
        first = run(make(splits=splits), "lora2")
        assert first.chosen["step"].all()
        # Every step towards the labels of the training stars is a step away from these.
        truth[rows] = base - 50 * (first.predictions[0, rows] - base)
        assert not run(make(synthetic.target(truth=truth), splits=splits), "lora2").chosen["step"].any()

    def test_without_validation_stars_the_training_stars_decide(self):
        splits = draw_splits(40, seeds=2, train=20, validate=0)
        assert (run(make(splits=splits, validate=0), "lora1+lora2").chosen["step"] > 0).all()

    @pytest.mark.parametrize(("count", "folds"), [(20, 5), (23, 5), (3, 5), (7, 2)])
    def test_stars_that_a_fold_leaves_out(self, count, folds):
        left_out, star = stars_of_folds(count, folds), np.arange(count)
        np.testing.assert_array_equal(left_out[fold_of(count, folds), star // folds], star)

    def test_folds_part_the_training_stars(self):
        own = make()._groups[0].trainer._labels(("mlp1",), 5)
        # Three seeds and 20 stars, in programs for four and 32.
        weights = own["weight"].reshape(4, 6, 32)
        assert not weights[..., 20:].any()
        weights = weights[:3, :, :20]
        np.testing.assert_array_equal(weights[:, 0], 1)
        np.testing.assert_array_equal((1 - weights[:, 1:]).sum(axis=1), 1)  # left out once
        np.testing.assert_array_equal((1 - weights[:, 1:]).sum(axis=2), 4)
        rows = own["rows"].reshape(4, 6, 32)[:3, :, :20]
        np.testing.assert_array_equal(rows, np.broadcast_to(SPLITS.train[:, None], rows.shape))

    def test_masked_modelling_draws_unlabelled_spectra_and_those_a_run_trains_on(self):
        adaptation = make()
        pool, allowed = adaptation.inputs.pool(adaptation._groups[0].trainer._trained_on(2))
        assert len(pool) == 12 + 40
        allowed = allowed.reshape(4, 3, 52)
        assert allowed[:, :, :12].all()
        for seed, rows in enumerate(SPLITS.train):
            assert set(np.flatnonzero(allowed[seed, 0, 12:])) == set(rows)
            np.testing.assert_array_equal(allowed[seed, 1:].sum(axis=1), 12 + 10)


class TestUnlabelled:
    def test_pairs_without_gaia_xp_do_not_take_part(self):
        target = synthetic.target()
        xp = target.unlabelled_xp
        mask = xp.mask.copy()
        mask[::3] = True
        results = []
        for filler in (0.0, 1e30):
            part = dataclasses.replace(xp, flux=np.where(mask, filler, xp.flux), mask=mask)
            adaptation = make(dataclasses.replace(target, unlabelled_xp=part), objective="sequential")
            results.append(run(adaptation, "lora3"))
        assert_same(*results)

    @pytest.mark.parametrize(
        ("target", "names", "message"),
        [
            (synthetic.target(unlabelled=0), ["lora3"], "LoRA3 needs Gaia XP"),
            (synthetic.target(xp=False), ["lora3", "lora1+lora3+lora4"], "LoRA3 needs Gaia XP"),
        ],
    )
    def test_what_is_missing_is_said(self, target, names, message):
        for name in names:
            with pytest.raises(DataError, match=message) as caught:
                run(make(target, objective="sequential"), name)
            assert "\n" not in str(caught.value)

    def test_masked_modelling_trains_where_every_spectrum_has_a_label(self):
        adaptation = make(synthetic.target(xp=False, unlabelled=0), objective="sequential")
        (factors,) = [group._tower_factors(("lora1",)) for group in adaptation._groups]
        moved = [np.abs(leaf).max() for path, leaf in flatten_dict(factors).items() if path[-1] == "lora_b"]
        assert moved
        assert min(moved) > 0  # they start at zero

    def test_without_gaia_xp_or_unlabelled_spectra_all_groups_train_on_the_labels(self, results):
        adaptation = make(synthetic.target(xp=False, unlabelled=0))
        for name in ("lora1+lora2", "lora1+lora3+lora4"):
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
        config = dataclasses.replace(CONFIG, objective="sequential")
        with pytest.raises(ModelError, match=message) as caught:
            run(Adaptation(bare, synthetic.target(), SPLITS, config), name)
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


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": 0}, "at least one seed is needed, not 0"),
        ({"seeds": -1, "one_split": True}, "at least one seed is needed, not -1"),
        ({"folds": 1}, "at least two folds"),
        ({"tower_folds": 0}, "at least two folds"),
        ({"head_scales": (0.5, 1.5)}, "between 0 and 1"),
        ({"ranks": (("out_proj(", 2),)}, "not a regular expression"),
        ({"ranks": (("out_proj", -1),)}, "must be 0 or more"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message) as caught:
        dataclasses.replace(CONFIG, **changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 10, "snapshots": 3}, "cannot be cut into 3 equal parts"),
        ({"steps": 10, "batch": 0}, "at least one row"),
        ({"steps": 10, "objective": Objective(masked=1.0)}, "need a batch size"),
    ],
)
def test_stages_that_cannot_be_trained_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        Stage(**options)


def test_weights_of_an_objective_are_positive():
    for weights in ({"label": -1.0}, {"label": 0.0}):
        with pytest.raises(ConfigError, match="must be positive or 0"):
            Objective(**weights)


def test_an_anchor_needs_features_of_another_term():
    with pytest.raises(ConfigError, match="the anchor needs the label or the contrastive term"):
        Objective(label=0.0, masked=1.0, anchor=1.0)
    Objective(label=0.0, contrastive=1.0, anchor=1.0)


def test_ranks_that_leave_a_group_without_layers_are_an_error():
    with pytest.raises(ModelError, match="nothing in this model for lora1 to adapt"):
        run(make(ranks=(("attention", 0),)), "lora1+lora2")


def test_more_steps_are_suggested_where_seeds_select_the_end():
    """A rate so small that every step helps; and not where the heads alone are selected."""
    slow = GroupSchedule(learning_rate=2e-3)
    short = (dataclasses.replace(CONFIG.joint[0], steps=4, snapshots=2, tower=slow, head=slow),)
    for name, suggested in (("lora1", True), ("lora2", False)):
        said = []
        run(make(say=said.append, joint=short), name)
        assert any("seeds selected the end of the training" in line for line in said) == suggested, name


def test_steps_come_with_a_snapshot_every_ten():
    stage = CONFIG.with_steps(40).joint[0]
    assert (stage.steps, stage.snapshots) == (40, 4)
    with pytest.raises(ConfigError, match="multiple of 10, not 45"):
        CONFIG.with_steps(45)
