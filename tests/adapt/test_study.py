import dataclasses
import json

import numpy as np
import pytest
from astropy.table import Table

from specjax import __version__
from specjax.adapt import run_folder
from specjax.adapt.adaptation import Adaptation, AdaptationResult
from specjax.adapt.configuration import Configuration
from specjax.adapt.forward import predict_label
from specjax.adapt.run_folder import score
from specjax.adapt.splits import draw_splits
from specjax.adapt.study import run_study
from specjax.atomic import MARKERS
from specjax.calibration.calibration import SUFFIXES, Calibration, Intervals
from specjax.calibration.scoring import covered
from specjax.checkpoints import load_adapter
from specjax.errors import ConfigError, DataError, ModelError, SpecjaxError
from specjax.foundation.ood import OutOfDomain
from specjax.report.metrics import SCORES, robust_sigma
from specjax.report.results import read_calibration, read_table
from tests import synthetic

pytestmark = pytest.mark.usefixtures("quick_compilation")

CONFIG = synthetic.ADAPT
SPLITS = draw_splits(40, seeds=3, train=20, validate=4)
NAMES_OF_TARGETS = ("shallow", "tilted")
NAMES = ["zero-shot-mlp2", "zero-shot-mlp1", "lora4", "lora1+lora2"]


def targets():
    first = synthetic.target()
    labelled = dataclasses.replace(first.labelled, flux=first.labelled.flux * 0.9 + 0.1)
    return [first, dataclasses.replace(first, name="shallow", labelled=labelled)]


def parsed(*names):
    return [Configuration.parse(name) for name in names]


def known_answer(target, splits):
    """A baseline that is right but for 0.1 dex in turn, and knows nothing of stars that are not tested."""
    values = np.full((len(splits), len(target.labelled)), np.nan)
    for row, test in zip(values, splits.test, strict=True):
        row[test] = target.truth[test] + 0.1 * (-1.0) ** np.arange(len(test))
    return {"oracle": values}


@pytest.fixture(scope="module")
def run(model, tmp_path_factory):
    """The folder of a run, its rows, and what it said."""
    out, said = tmp_path_factory.mktemp("runs") / "run", []
    rows = run_study(
        model,
        targets(),
        CONFIG,
        out,
        configurations=parsed("lora4", "lora1+lora2"),
        baselines=known_answer,
        label_scatter={"tilted": 0.05},
        record={"model": "somewhere", "spectra": out / "x"},
        say=said.append,
    )
    return out, rows, said


def cheap(model, out, **options):
    """A study of one row, which compiles nothing new."""
    given = {"targets": targets()[:1], "config": CONFIG, "configurations": ["zero-shot-mlp2"]} | options
    given["configurations"] = parsed(*given["configurations"])
    return run_study(model, out=out, say=lambda text: None, **given)


class TestFolder:
    def test_holds_what_is_promised_and_nothing_else(self, run):
        out, _, _ = run
        found = sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())
        adapters = [
            f"adapters/{target}/{name}/{file}"
            for target in NAMES_OF_TARGETS
            for name in ("lora1+lora2", "lora4")
            for file in ("config.json", "manifest.json", "weights.safetensors")
        ]
        plots = [
            f"{kind}_{target}.png" for kind in ("calibration", "predictions") for target in NAMES_OF_TARGETS
        ]
        plots.append("sigma.png")
        tables = ["calibration.ecsv", "calibration.json", "predictions.ecsv", "table.json"]
        papers = [name.replace(".png", ".pdf") for name in plots]
        assert found == sorted([*adapters, "config.json", *tables, *plots, *papers])
        for name in plots:
            assert (out / name).read_bytes().startswith(b"\x89PNG")
        assert (out / "table.json").name in MARKERS  # so that a later run may replace the folder
        assert list(out.parent.iterdir()) == [out]

    def test_config(self, run):
        content = json.loads((run[0] / "config.json").read_text())
        assert content["outside_training"] == {"tilted": {}, "shallow": {}}  # the model knows no domain
        assert content["configurations"] == NAMES
        assert content["model"] == "somewhere"
        assert content["adapt"]["seeds"] == 3
        assert content["adapt"]["head"][0]["head"]["learning_rate"] == 3e-2
        assert content["made"]["versions"]["specjax"] == __version__
        assert content["made"]["versions"].keys() >= {"python", "jax", "numpy"}

    def test_table(self, run):
        out, rows, _ = run
        table = read_table(out)
        keys = ["target", "configuration", "subset", "n_stars", "n_seeds"]
        scores = [f"{name}{end}" for name in SCORES for end in ("", "_lo", "_hi", "_err")]
        assert set(keys + scores) <= set(table[0])
        assert len(table) == 2 * 5 * 3
        assert [row["configuration"] for row in table[:15:3]] == [*NAMES, "oracle"]
        for read, made in zip(table, rows, strict=True):
            assert read.keys() == made.keys()
            for name, value in made.items():
                np.testing.assert_equal(read[name], value)
        kinds = {row["configuration"]: row["kind"] for row in table}
        assert kinds["oracle"] == "baseline"
        assert kinds["lora4"] == "adapted"

    def test_gains_are_paired_against_the_row_of_the_same_head(self, run):
        rows = {(r["target"], r["configuration"]): r for r in run[1] if r["subset"] == "all"}
        for target in ("tilted", "shallow"):
            for name, reference in (("lora4", "zero-shot-mlp2"), ("lora1+lora2", "zero-shot-mlp1")):
                expected = rows[target, reference]["sigma"] - rows[target, name]["sigma"]
                assert rows[target, name]["sigma_gain"] == pytest.approx(expected)
            for name in ("zero-shot-mlp1", "zero-shot-mlp2", "oracle"):
                assert np.isnan(rows[target, name]["sigma_gain"])

    def test_predictions(self, run):
        out, rows, _ = run
        table = Table.read(out / "predictions.ecsv")
        intervals = [f"fe_h{end}" for end in SUFFIXES]
        assert table.colnames == [
            *("target", "configuration", "seed", "id", "fe_h", "fe_h_predicted"),
            *intervals,
        ]
        assert str(table["fe_h"].unit) == str(table["fe_h_predicted"].unit) == "dex"
        assert len(table) == 2 * 5 * 3 * 16
        for target in targets():
            for name in [*NAMES, "oracle"]:
                part = table[(table["target"] == target.name) & (table["configuration"] == name)]
                ids, truth, sigma = target.labelled.id, target.truth, []
                for seed, test in enumerate(SPLITS.test):
                    one = part[part["seed"] == seed]
                    assert list(one["id"]) == ids[test].tolist()
                    np.testing.assert_array_equal(one["fe_h"], truth[test])
                    sigma.append(robust_sigma(np.asarray(one["fe_h_predicted"] - one["fe_h"])))
                (row,) = [
                    r
                    for r in rows
                    if (r["target"], r["configuration"], r["subset"]) == (target.name, name, "all")
                ]
                assert row["sigma"] == pytest.approx(np.mean(sigma))
                assert row["sigma_std"] == pytest.approx(np.std(sigma, ddof=1))
                assert row["sigma_lo"] < row["sigma"] < row["sigma_hi"]
                assert row["n_stars"] == 16

    def test_the_calibration_is_that_of_the_intervals(self, run):
        table, rows = Table.read(run[0] / "predictions.ecsv"), read_calibration(run[0])
        assert {row["configuration"] for row in rows} == set(NAMES)
        for row in rows:
            if row["subset"] == "all":
                matches = [table[name] == row[name] for name in ("target", "configuration")]
                part = table[np.logical_and(*matches)]
                ends = Intervals(*(np.asarray(part[f"fe_h{end}"]) for end in SUFFIXES))
                inner, outer = covered(np.asarray(part["fe_h"]), ends)
                assert (row["coverage68"], row["coverage95"]) == (inner.mean(), outer.mean())
        assert np.isnan(table["fe_h_err"][table["configuration"] == "oracle"]).all()
        assert len(Table.read(run[0] / "calibration.ecsv")) == len(rows)

    def test_few_stars_are_said_once_per_target(self, run):
        lines = [line for line in run[2] if "calibration stars on one side of predicted [Fe/H] = -1" in line]
        assert len(lines) == 2

    def test_adapters_give_the_predictions_again(self, run, model):
        out, _, _ = run
        table = Table.read(out / "predictions.ecsv")
        for target in targets():
            for name in ("lora4", "lora1+lora2"):
                stored = load_adapter(out / "adapters" / target.name / name, base=model.digest)
                assert stored.config["configuration"] == name
                assert stored.config["label"] == "fe_h"
                assert stored.config["seeds"] == 3
                assert sum(Calibration.from_json(stored.config["calibration"]).counts) == 40
                assert set(stored.config["lora"]) == set(name.split("+"))
                heads = Configuration.parse(name).heads
                again = predict_label(model, heads, stored.arrays, target.labelled, "fe_h")
                part = table[(table["target"] == target.name) & (table["configuration"] == name)]
                expected = np.take_along_axis(again, SPLITS.test, axis=1).ravel()
                # merged factors against factors beside the base: float32
                np.testing.assert_allclose(part["fe_h_predicted"], expected, rtol=1e-4, atol=2e-4)

    def test_adapters_refuse_another_base(self, run):
        with pytest.raises(ModelError, match="another base model"):
            load_adapter(run[0] / "adapters" / "tilted" / "lora4", base="0" * 64)

    def test_says_where_it_is(self, run):
        for name in NAMES:
            assert f"shallow: {name}" in run[2]


def test_ranks_by_layer_are_stored_with_the_scale_of_the_group(model, tmp_path):
    config = dataclasses.replace(CONFIG, ranks=(("mlp2/dense_0", 5), ("dense_1", 0)))
    cheap(model, tmp_path / "run", config=config, configurations=["lora4"])
    stored = load_adapter(tmp_path / "run" / "adapters" / "tilted" / "lora4")
    assert stored.config["lora"] == {
        "lora4": {"scale": synthetic.CONFIG.lora4.scale, "ranks": {"mlp2/dense_0": 5}}
    }


class TestFailure:
    def test_in_the_middle_leaves_nothing(self, model, tmp_path):
        def fail(target, splits):
            if target.name == "shallow":
                raise DataError("no such luck")
            return {}

        with pytest.raises(DataError, match="no such luck"):
            cheap(model, tmp_path / "run", targets=targets(), baselines=fail)
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize("error", [DataError("late"), KeyboardInterrupt()])
    def test_at_the_end_keeps_the_former_run(self, model, tmp_path, monkeypatch, error):
        cheap(model, tmp_path / "run")
        before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}

        def fail(*args, **options):
            raise error

        monkeypatch.setattr(run_folder.plots, "plot_sigma", fail)
        with pytest.raises(type(error)):
            cheap(model, tmp_path / "run", configurations=["zero-shot-mlp1"])
        assert list(tmp_path.iterdir()) == [tmp_path / "run"]
        assert {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()} == before

    def test_a_second_run_replaces_the_first(self, model, tmp_path):
        for name in ("zero-shot-mlp2", "zero-shot-mlp1"):
            cheap(model, tmp_path / "run", configurations=[name])
            assert {row["configuration"] for row in read_table(tmp_path / "run")} == {name}

    def test_a_folder_of_somebody_else_is_left_alone(self, model, tmp_path):
        (tmp_path / "thesis.tex").write_text("years of work")
        with pytest.raises(SpecjaxError, match="was not written by specjax"):
            cheap(model, tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]

    @pytest.mark.parametrize(
        ("options", "error"),
        [
            ({"configurations": ["lora4", "lora9"]}, ConfigError),
            ({"config": dataclasses.replace(CONFIG, train=36)}, DataError),
            ({"targets": [synthetic.target(label="logg")]}, ConfigError),
            (
                {
                    "targets": [synthetic.target(xp=False)],
                    "configurations": ["lora3"],
                    "config": dataclasses.replace(CONFIG, objective="sequential"),
                },
                DataError,
            ),
        ],
    )
    def test_what_is_wrong_is_one_line_and_nothing_is_written(self, model, tmp_path, options, error):
        with pytest.raises(error) as caught:
            cheap(model, tmp_path / "run", **options)
        assert "\n" not in str(caught.value)
        assert not list(tmp_path.iterdir())

    def test_a_model_without_a_folder_is_told_so_before_it_trains(self, tmp_path, monkeypatch):
        monkeypatch.setattr(Adaptation, "run", lambda *_: pytest.fail("it trained"))
        with pytest.raises(ModelError, match="loaded from a folder"):
            cheap(synthetic.foundation(), tmp_path / "run", configurations=["lora4"])
        assert not list(tmp_path.iterdir())

    def test_zero_shot_needs_no_folder_of_the_model(self, tmp_path):
        rows = cheap(synthetic.foundation(), tmp_path / "run")
        assert len(rows) == 3
        assert not (tmp_path / "run" / "adapters").exists()


def test_one_split_repeats_the_first_of_given_splits(model, tmp_path):
    config = dataclasses.replace(CONFIG, seeds=4, one_split=True)
    cheap(model, tmp_path / "run", config=config, splits={"tilted": SPLITS[1:]})
    table = Table.read(tmp_path / "run" / "predictions.ecsv")
    expected = synthetic.target().labelled.id[SPLITS.test[1]]
    for seed in range(4):
        assert table["id"][table["seed"] == seed].tolist() == expected.tolist()


def test_splits_that_are_all_equal_have_no_p_value():
    """The corrected resampled t test asks about another draw of training stars."""
    target, rng = synthetic.target(), np.random.default_rng(0)
    for splits, has_p in ((SPLITS, True), (SPLITS.repeated(3), False)):
        scatter = {"zero-shot-mlp2": 0.3, "lora4": 0.1}
        made = [
            AdaptationResult(
                configuration=Configuration.parse(name),
                predictions=target.truth + rng.normal(0, sigma, (3, 40)),
                unseen=target.truth[splits.unseen],
                adapters={},
                chosen={},
            )
            for name, sigma in scatter.items()
        ]
        (row,) = [
            r for r in score(target, splits, made) if (r["configuration"], r["subset"]) == ("lora4", "all")
        ]
        assert np.isfinite([row["sigma_gain"], row["sigma_gain_std"], row["sigma_gain_lo"]]).all()
        assert np.isfinite(row["sigma_gain_p"]) == has_p


def test_another_label_has_its_own_unit(model, tmp_path):
    values = synthetic.labels(40, seed=5)
    target = synthetic.target(label="teff", truth=values[:, 0])
    cheap(model, tmp_path / "run", targets=[target])
    table = Table.read(tmp_path / "run" / "predictions.ecsv")
    assert str(table["teff_predicted"].unit) == "K"
    assert 3000 < np.median(table["teff"]) < 8000


def test_scores_use_test_stars_only():
    target = synthetic.target()
    values = np.tile(target.truth, (3, 1))
    for row, train, validate in zip(values, SPLITS.train, SPLITS.validate, strict=True):
        row[np.concatenate([train, validate])] = np.nan
    right = AdaptationResult(
        configuration=Configuration.parse("zero-shot-mlp1"),
        predictions=values,
        unseen=target.truth[SPLITS.unseen],
        adapters={},
        chosen={},
    )
    rows = score(target, SPLITS, [right], {"also right": values})
    assert [row["kind"] for row in rows[::3]] == ["zero-shot", "baseline"]
    assert rows[3]["sigma"] == 0
    assert rows[0]["sigma"] == 0
    assert rows[0]["r2"] == 1
    assert rows[0]["n_distinct"] == len(np.unique(SPLITS.test))


def test_labelled_stars_outside_the_training_range_are_reported(model, tmp_path):
    target = targets()[0]
    features = model.backbone_features(target.labelled).mean
    distance = np.linalg.norm(features - features[3], axis=1)
    limit = float(np.sort(distance)[-3:-1].mean())  # the two stars most unlike star 3 are beyond it
    d = features.shape[1]
    domain = OutOfDomain(mean=features[3], whitening=np.eye(d), limit=limit)
    said = []
    options = {"config": CONFIG, "configurations": parsed("zero-shot-mlp2"), "say": said.append}
    run_study(dataclasses.replace(model, ood=domain), [target], out=tmp_path / "run", **options)
    flagged = json.loads((tmp_path / "run" / "config.json").read_text())["outside_training"]["tilted"]
    assert flagged == dict.fromkeys(target.labelled.id[distance > limit].tolist(), "unlike_training")
    assert len(flagged) == 2
    assert any("2 of 40 labelled spectra are outside" in line for line in said)


@pytest.fixture(scope="module")
def fused(model, tmp_path_factory):
    out, said = tmp_path_factory.mktemp("fused") / "run", []
    config = dataclasses.replace(CONFIG, one_split=True, fuse=True)
    rows = run_study(
        model,
        [synthetic.target()],
        config,
        out,
        configurations=parsed("lora4", "residual-mlp2"),
        say=said.append,
    )
    return out, rows, said


class TestFused:
    """One adapter of all seeds, beside the mean of their predictions."""

    def test_is_scored_on_stars_that_no_seed_has_seen(self, fused):
        rows = {row["configuration"]: row for row in fused[1] if row["subset"] == "all"}
        assert list(rows) == ["zero-shot-mlp2", "lora4", "residual-mlp2", "lora4-mean", "lora4-fused"]
        assert rows["lora4-fused"]["n_stars"] == rows["lora4"]["n_stars"] == 16
        assert rows["lora4-fused"]["n_seeds"] == 1
        # one split and other draws: seeds differ, and their mean is no single one
        assert rows["lora4-mean"]["sigma"] != rows["lora4"]["sigma"]

    def test_is_an_adapter_to_predict_with(self, fused, model):
        folder = fused[0] / "adapters" / "tilted"
        one, each = (load_adapter(folder / name, base=model.digest) for name in ("lora4-fused", "lora4"))
        assert (one.config["seeds"], one.config["configuration"]) == (1, "lora4")
        labelled = synthetic.target().labelled
        found, many = (
            predict_label(model, ("mlp2",), stored.arrays, labelled, "fe_h") for stored in (one, each)
        )
        assert found.shape == (1, 40)
        # Not the mean of the predictions, as the head is not linear, but near it.
        assert 0 < np.abs(found[0] - many.mean(axis=0)).max() < 0.5

    def test_intervals_are_calibrated_on_other_stars(self, fused):
        """The rows of the mean and of the fused adapter have some, and the deployed ones use all stars."""
        table = Table.read(fused[0] / "predictions.ecsv")
        for name in ("lora4-mean", "lora4-fused"):
            assert np.isfinite(table["fe_h_lo95"][table["configuration"] == name]).all()
        folder = fused[0] / "adapters" / "tilted"
        one, each = (load_adapter(folder / name).config["calibration"] for name in ("lora4-fused", "lora4"))
        assert sum(one["counts"]) == sum(each["counts"]) == 40

    def test_the_stored_ranks_are_those_of_the_factors(self, fused):
        folder = fused[0] / "adapters" / "tilted"
        for name in ("lora4", "lora4-fused"):
            stored = load_adapter(folder / name)
            found = {
                f"mlp2/{layer}": leaf["lora_a"].shape[-1] for layer, leaf in stored.arrays["mlp2"].items()
            }
            scale = synthetic.CONFIG.lora4.scale
            assert stored.config["lora"] == {"lora4": {"scale": scale, "ranks": found}}
        assert load_adapter(folder / "residual-mlp2").config["lora"] == {}

    def test_predictions_are_those_that_are_scored(self, fused, model):
        table = Table.read(fused[0] / "predictions.ecsv")
        rows = {row["configuration"]: row for row in fused[1] if row["subset"] == "all"}
        assert list(dict.fromkeys(table["configuration"])) == list(rows)
        seeds = table[table["configuration"] == "lora4"]
        means = [np.mean(seeds["fe_h_predicted"][seeds["id"] == name]) for name in np.unique(seeds["id"])]
        for name in ("lora4-mean", "lora4-fused"):
            part = table[table["configuration"] == name]
            assert set(part["seed"]) == {0}
            residual = np.asarray(part["fe_h_predicted"] - part["fe_h"])
            assert rows[name]["sigma"] == pytest.approx(robust_sigma(residual))
        part = table[table["configuration"] == "lora4-mean"]
        np.testing.assert_allclose(part["fe_h_predicted"][np.argsort(part["id"])], means, rtol=1e-6)

    def test_advises_one_split_only_where_seeds_differ(self, model, tmp_path):
        for one_split in (True, False):
            said = []
            config = dataclasses.replace(CONFIG, train=30, validate=4, fuse=True, one_split=one_split)
            run_study(
                model, [synthetic.target()], config, tmp_path / "run", configurations=parsed("lora4"),
                say=said.append,
            )  # fmt: skip
            (line,) = [line for line in said if "too few to score the fused adapters" in line]
            assert ("use one split" in line) == (not one_split)

    def test_is_not_scored_where_every_star_was_seen(self, model, tmp_path):
        said = []
        config = dataclasses.replace(CONFIG, seeds=6, fuse=True)
        rows = run_study(
            model, [synthetic.target()], config, tmp_path / "run", configurations=parsed("lora4"),
            say=said.append,
        )  # fmt: skip
        assert "lora4-fused" not in {row["configuration"] for row in rows}
        assert any("too few to score the fused adapters" in line for line in said)
        assert (tmp_path / "run" / "adapters" / "tilted" / "lora4-fused").is_dir()
