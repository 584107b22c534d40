"""One survey with several labels: what is shared, what is not, and the files of the run."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from astropy.table import Table

from specjax.adapt import forward
from specjax.adapt.configuration import Configuration
from specjax.adapt.inputs import TargetInputs, inputs_of_labels
from specjax.adapt.splits import draw_splits
from specjax.adapt.study import run_study
from specjax.adapt.tower import Entry
from specjax.calibration.calibration import SUFFIXES
from specjax.checkpoints import load_adapter
from specjax.errors import ConfigError
from specjax.report.results import read_table
from specjax.train import loop
from tests import synthetic

pytestmark = pytest.mark.usefixtures("quick_compilation")

CONFIG = dataclasses.replace(synthetic.ADAPT, seeds=2)
LACKING = (3, 17, 30)  # rows without teff
CLOSE = {"rtol": 1e-4, "atol": 2e-4}  # float32 in batches of other shapes


def both_labels(lacking=LACKING):
    """The synthetic survey with [Fe/H], and the same with Teff for all stars but some."""
    metal = synthetic.target()
    kept = np.setdiff1d(np.arange(40), lacking)
    hot = dataclasses.replace(
        metal,
        label="teff",
        labelled=metal.labelled[kept],
        truth=synthetic.labels(40, seed=5)[kept, 0],
        fe_h=metal.fe_h[kept],
    )
    return [metal, hot]


def study(model, targets, out, **options):
    said = []
    configurations = [Configuration.parse("lora4")]
    rows = run_study(model, targets, CONFIG, out, configurations=configurations, say=said.append, **options)
    return rows, said


@pytest.fixture(scope="module")
def run(model, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "both"
    return out, *study(
        model, both_labels(), out, files=lambda config: {"run.toml": f"seeds = {config.seeds}\n"}
    )


def test_files_name_the_label(run):
    out, rows, said = run
    found = sorted(str(path.relative_to(out)) for path in out.rglob("*.png"))
    assert found == sorted(
        f"{name}_{label}.png"
        for name in ("calibration_tilted", "predictions_tilted", "sigma")
        for label in ("fe_h", "teff")
    )
    folders = sorted(path.parent for path in out.rglob("manifest.json"))
    assert folders == [out / "adapters" / "tilted" / "lora4" / label for label in ("fe_h", "teff")]
    assert [load_adapter(folder).config["label"] for folder in folders] == ["fe_h", "teff"]
    assert {row["label"] for row in read_table(out)} == {"fe_h", "teff"}
    assert "tilted/teff: lora4" in said
    assert (out / "run.toml").read_text() == "seeds = 2\n"
    assert json.loads((out / "config.json").read_text())["configurations"] == ["zero-shot-mlp2", "lora4"]
    assert {(row["label"], row["n_stars"]) for row in rows if row["subset"] == "all"} == {
        ("fe_h", 16),
        ("teff", 13),
    }


def test_predictions_are_one_table(run):
    """A star that is tested with both labels has one row, one without Teff has NaN."""
    table = Table.read(run[0] / "predictions.ecsv")
    ends = ["", "_predicted", *SUFFIXES]
    own = [f"{label}{end}" for label in ("fe_h", "teff") for end in ends]
    assert table.colnames == ["target", "configuration", "seed", "id", *own]
    keys = list(zip(table["configuration"], table["seed"], table["id"], strict=True))
    assert len(set(keys)) == len(keys)
    assert str(table["teff"].unit) == "K"
    for name, target in zip(("fe_h", "teff"), both_labels(), strict=True):
        truth = dict(zip(target.labelled.id, target.truth, strict=True))
        known = table[np.isfinite(np.ma.filled(table[name].astype(float), np.nan))]
        assert set(known["id"]) <= set(truth)
        np.testing.assert_array_equal(known[name], [truth[star] for star in known["id"]])
    lacking = {f"L{row}" for row in LACKING}
    without = table[np.isin(table["id"], list(lacking))]
    assert len(without)
    assert np.isnan(np.ma.filled(without["teff"].astype(float), np.nan)).all()


def test_a_label_that_all_stars_have_is_adapted_as_in_a_run_of_its_own(run, model, tmp_path):
    rows, _ = study(model, both_labels()[:1], tmp_path / "alone")
    mine = [row for row in run[1] if row["label"] == "fe_h"]
    assert len(mine) == len(rows)
    for one, other in zip(mine, rows, strict=True):
        np.testing.assert_equal(one, other)
    alone = load_adapter(tmp_path / "alone" / "adapters" / "tilted" / "lora4").arrays
    within = load_adapter(run[0] / "adapters" / "tilted" / "lora4" / "fe_h").arrays
    jax.tree.map(np.testing.assert_array_equal, alone, within)


def test_another_label_compiles_nothing_and_runs_the_backbone_once(run, model, tmp_path, monkeypatch):
    """All stars have both labels, so that shapes are the same."""
    study(model, both_labels(())[:1], tmp_path / "first")
    made, passes, compute = loop._program.cache_info().misses, [], forward.backbone
    monkeypatch.setattr(forward, "backbone", lambda *given: passes.append(1) or compute(*given))
    study(model, both_labels(()), tmp_path / "both")
    assert loop._program.cache_info().misses == made
    assert passes == [1]


def test_inputs_of_fewer_stars_are_rows_of_those_of_all():
    model, targets = synthetic.foundation(), both_labels()
    for target, found in zip(targets, inputs_of_labels(model, targets), strict=True):
        alone = TargetInputs(model, target)
        jax.tree.map(np.testing.assert_array_equal, found.labelled, alone.labelled)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **CLOSE), found.base, alone.base)
        entry = Entry("tokens")
        for one, other in zip(
            *(jax.tree.leaves(each.labelled_at(entry, (), {})) for each in (found, alone)), strict=True
        ):
            count = len(target.labelled)  # what follows is padding
            np.testing.assert_allclose(np.atleast_1d(one)[:count], np.atleast_1d(other)[:count], **CLOSE)
        assert found.unlabelled.flux.shape == alone.unlabelled.flux.shape


def test_a_star_keeps_its_place_among_the_stars_of_a_label():
    among = np.arange(40) % 5 > 0
    whole = draw_splits(40, seeds=3, train=12, validate=4)
    part = draw_splits(40, seeds=3, train=12, validate=4, among=among)
    number = np.cumsum(among) - 1
    for seed in range(3):
        order = np.concatenate([whole.train[seed], whole.validate[seed], whole.test[seed]])
        mine = np.concatenate([part.train[seed], part.validate[seed], part.test[seed]])
        np.testing.assert_array_equal(mine, number[order[among[order]]])
    same = draw_splits(40, seeds=3, train=12, validate=4, among=np.ones(40, bool))
    np.testing.assert_array_equal(same.test, whole.test)


def test_a_label_that_the_model_lacks_is_refused_before_anything_is_trained(model, tmp_path):
    metal, hot = both_labels()
    with pytest.raises(ConfigError, match="not 'logg'"):
        study(model, [metal, dataclasses.replace(hot, label="logg")], tmp_path / "run")
    assert not list(tmp_path.iterdir())
