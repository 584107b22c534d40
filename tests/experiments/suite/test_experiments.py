"""The experiments on a tiny model: that they run, resume, and say what their tables hold."""

import dataclasses
import math

import numpy as np
import pytest

from experiments.suite import dose, factors, few_shot, fusing, subsets
from experiments.suite.cases import load_cases
from experiments.suite.frame import Kept, Results
from experiments.suite.page import QUESTIONS
from experiments.suite.runner import Runner
from specjax.adapt.adaptation import Adaptation
from specjax.adapt.configuration import Configuration
from specjax.lora import layer_ranks
from specjax.progress import silent
from specjax.report.metrics import robust_sigma
from specjax.train.losses import pseudo_huber
from tests import synthetic
from tests.experiments.suite.conftest import small

pytestmark = pytest.mark.usefixtures("quick_compilation", "on_synthetic")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where all tests of this module keep rows, so that a second look at an experiment trains nothing."""
    return tmp_path_factory.mktemp("experiments")


def run(module, folder, config):
    results = module.run(config, folder / module.__name__, silent)
    assert set(results.answers) <= set(QUESTIONS)
    assert all(sentence.endswith(".") for sentence in (*results.sentences, *results.answers.values()))
    # Every value of the columns is somewhere, and every interval holds its value.
    for column in results.columns:
        if column.name not in ("lora1_gain", "xp", "xp_gain"):  # of towers, which few tests train
            assert any(column.text(row) for row in results.rows), column.name
    for row in results.rows:
        for name in row:
            if name.endswith("_lo") and math.isfinite(row[name]):
                assert row[name] <= row[name[:-3]] <= row[f"{name[:-3]}_hi"], (row["name"], name)
    return results


def by_name(results):
    return {row["name"]: row for row in results.rows}


SUBSETS = small(subsets.get_config(), subsets=("lora4", "lora3+lora4"))
HEADS = small(subsets.get_config(), subsets=("lora2", "lora4"))


class TestSubsets:
    def test_there_are_fifteen(self):
        assert len(set(subsets.SUBSETS)) == 15
        assert all(Configuration.parse(name).is_adapted for name in subsets.SUBSETS)

    @pytest.mark.slow
    def test_rows_and_gains(self, folder):
        results = run(subsets, folder, SUBSETS)
        names = [(row["name"], row.get("xp")) for row in results.rows]
        assert names == [
            ("zero-shot-mlp1", None), ("zero-shot-mlp2", None), ("lora4", "no"), ("lora3+lora4", "no"),
            ("lora3+lora4", "yes"), ("gp-target", None), ("kernel-ridge", None),
        ]  # fmt: skip
        rows = {name: row for name, row in zip(names, results.rows, strict=True)}
        zero, adapted = rows["zero-shot-mlp2", None], rows["lora4", "no"]
        assert adapted["sigma_gain"] == pytest.approx(zero["sigma"] - adapted["sigma"])
        plain, aligned = rows["lora3+lora4", "no"], rows["lora3+lora4", "yes"]
        assert aligned["xp_gain"] == pytest.approx(plain["sigma"] - aligned["sigma"])
        assert {row["baseline"] for row in results.rows} == {"gp-target"} or {"kernel-ridge"}
        assert set(results.answers) == {"adapt", "placement", "xp"}

    def test_a_second_run_trains_nothing_and_says_the_same(self, folder, monkeypatch):
        first = run(subsets, folder / "heads", HEADS)
        monkeypatch.setattr(Adaptation, "run", lambda *_: pytest.fail("trained again"))
        again = run(subsets, folder / "heads", HEADS)
        assert (again.sentences, again.answers) == (first.sentences, first.answers)

    def test_the_table_is_written_and_drawn(self, folder, tmp_path):
        results = run(subsets, folder / "heads", HEADS)
        results.write(tmp_path)
        assert Results.read(tmp_path).sentences == results.sentences
        assert (tmp_path / "plot.png").stat().st_size > 1000


class TestFewShot:
    CONFIG = small(few_shot.get_config(), counts=(5, 20), configurations=("lora4",))

    def test_training_stars_are_nested_and_test_stars_are_the_same(self):
        (case,) = load_cases(self.CONFIG)
        splits = few_shot.nested_splits(case, dataclasses.replace(self.CONFIG, counts=(20, 5, 30)))
        assert list(splits) == [5, 20]  # 30 labels would leave too few of 40 stars
        np.testing.assert_array_equal(splits[5].train, splits[20].train[:, :5])
        np.testing.assert_array_equal(splits[5].test, splits[20].test)
        for split in splits.values():
            assert split.validate.shape == (2, 0)
            assert not any(set(a) & set(b) for a, b in zip(split.train, split.test, strict=True))

    def test_more_labels_do_better(self, folder):
        results = run(few_shot, folder, self.CONFIG)
        rows = {(row["name"], row["labels"]): row for row in results.rows}
        assert rows["lora4", 20]["sigma"] < rows["zero-shot-mlp2", 20]["sigma"]
        assert rows["lora4", 20]["r2"] > rows["lora4", 5]["r2"]
        assert rows["zero-shot-mlp2", 5]["sigma"] == rows["zero-shot-mlp2", 20]["sigma"]
        assert "With 20 labels" in results.answers["labels"]


class TestFactors:
    def test_each_row_changes_one_thing(self):
        config = factors.get_config()
        model = synthetic.foundation()
        made = factors.settings_of(config, model)
        assert next(iter(made)) == factors.DEFAULT
        settings = [(one.ranks, one.start, one.joint, m.config.lora1.alpha) for one, m in made.values()]
        assert len(set(settings)) == len(made) - 1  # the last block of the tiny model is its only one
        groups = {"lora1": model.config.lora1, "lora2": model.config.lora2}
        usual = layer_ranks(model.params, groups)
        for name in ("rank 1", "out_proj", "last-block"):
            ranks = layer_ranks(model.params, groups, made[name][0].ranks)
            for layer, rank in ranks.items():
                if layer.startswith("mlp1") or name == "last-block":
                    assert rank == usual[layer]
                elif name == "rank 1":
                    assert rank == 1
                else:
                    assert rank == (usual[layer] if "out_proj" in layer else 0)

    def test_gains_are_against_the_default(self, folder):
        config = small(
            factors.get_config(), configuration="lora4", ranks=(), scales=(), ratios=(), variants=("eva",)
        )
        rows = by_name(run(factors, folder, config))
        assert rows["eva"]["sigma_gain"] == pytest.approx(rows["default"]["sigma"] - rows["eva"]["sigma"])
        assert rows["eva"]["sigma"] != rows["default"]["sigma"]


@pytest.mark.slow
class TestDose:
    CONFIG = small(dose.get_config(), configuration="lora3+lora4", steps=(10, 20), rates=(1e-2,), test=10)

    def test_the_best_state_is_at_least_as_good_on_test_stars(self, folder):
        results = run(dose, folder, self.CONFIG)
        case = next(dose._cases(self.CONFIG))
        assert case.splits.test.shape == (2, 10)
        runner = Runner(case, Kept(folder / dose.__name__, self.CONFIG), silent)
        for name, settings in dose.doses(self.CONFIG).items():
            made = dose._judged(runner, Configuration.parse("lora3+lora4"), name, settings)
            for seed, test in enumerate(case.splits.test):
                unit = case.model.stats["mlp2"]["label_std"][1]
                losses = [
                    pseudo_huber((made[which][seed, test] - case.target.truth[test]) / unit).mean()
                    for which in ("best", "selected")
                ]
                assert losses[0] <= losses[1] + 1e-6  # float32 predictions
        rows = by_name(results)
        assert all(row["stops"] <= 20 for row in results.rows if "stops" in row)  # steps of the tower
        sigmas = [
            robust_sigma(made["best"][seed, test] - case.target.truth[test])
            for seed, test in enumerate(case.splits.test)
        ]
        assert rows[name]["regret"] == pytest.approx(rows[name]["sigma"] - np.mean(sigmas))

    def test_what_is_selected_is_what_an_adaptation_selects(self, folder):
        """The test stars that are scored besides do not change the choice."""
        run(dose, folder, self.CONFIG)
        case = next(dose._cases(self.CONFIG))
        runner = Runner(case, Kept(folder / dose.__name__, self.CONFIG), silent)
        configuration, (name, settings) = (
            Configuration.parse("lora3+lora4"),
            list(dose.doses(self.CONFIG).items())[1],
        )
        made = dose._judged(runner, configuration, name, settings)
        result = runner.adaptation(settings).run(configuration)
        np.testing.assert_array_equal(made["step"], result.chosen["step"])
        for seed, test in enumerate(case.splits.test):
            # float32 in batches of other shapes
            np.testing.assert_allclose(
                made["selected"][seed, test], result.predictions[seed, test], rtol=1e-4, atol=2e-4
            )


class TestFusing:
    CONFIG = small(fusing.get_config(), configurations=("lora4",), members=2)

    def test_rows_are_those_of_the_same_predictions(self, folder):
        results = run(fusing, folder, self.CONFIG)
        ways = [row["way"] for row in results.rows if "way" in row]
        assert ways == [fusing.SINGLE, fusing.BEST, fusing.MEAN, fusing.FUSED]
        baselines = [row for row in results.rows if row["kind"] == "baseline"]
        assert baselines
        assert all(row["configuration"] == row["name"] for row in baselines)
        rows = {row.get("way"): row for row in results.rows}
        (case,) = load_cases(self.CONFIG)
        kept = Kept(folder / fusing.__name__, self.CONFIG)
        found = [kept.arrays(f"tilted/lora4/split-{k}", lambda: pytest.fail("not kept")) for k in range(2)]

        def scatter(predictions):
            errors = [
                p[rows] - case.target.truth[rows]
                for p, rows in zip(predictions, case.splits.test, strict=True)
            ]
            return np.mean([robust_sigma(one) for one in errors])

        members = np.stack([one["members"] for one in found])
        assert rows[fusing.MEAN]["sigma"] == pytest.approx(scatter(members.mean(axis=1)))
        assert rows[fusing.SINGLE]["sigma"] == pytest.approx(
            np.mean([scatter(members[:, k]) for k in range(2)])
        )
        assert rows[fusing.FUSED]["sigma"] == pytest.approx(scatter([one["fused"] for one in found]))
        # Members of one split differ in their random numbers only, and agree better than with the truth.
        assert rows[fusing.SINGLE]["spread"] < rows[fusing.SINGLE]["sigma"]
