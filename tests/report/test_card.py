"""The cards of models, adapters and runs: what they say is what the files say."""

import numpy as np
import pytest

from specjax.checkpoints import load_adapter, load_model, save_model
from specjax.errors import DataError, ModelError
from specjax.foundation.model import SHIPPED, shipped_folder
from specjax.report.card import CardOptions, make_card
from specjax.report.results import value_and_interval
from specjax.report.shared import is_shared, local_paths, read_shared
from tests.report.runs import SEEDS, STARS, write_run

OPTIONS = CardOptions(repository="someone/thing", license="cc-by-4.0", data="MILES; cite it.")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    folder.mkdir()
    return folder, write_run(folder)


def header_of(card):
    yaml = pytest.importorskip("yaml")
    start, header, _ = card.split("---\n", 2)
    assert start == ""
    return yaml.safe_load(header)


def test_the_header_is_what_the_hub_reads(run):
    folder, rows = run
    card = make_card(read_shared(folder), OPTIONS)
    header = header_of(card)
    assert (header["license"], header["library_name"]) == ("cc-by-4.0", "specjax")
    assert {"specjax", "lora"} <= set(header["tags"])
    hub = pytest.importorskip("huggingface_hub")
    found = hub.ModelCard(card, ignore_metadata_errors=False).data.eval_results
    scores = {(one.dataset_type, one.metric_type): one.metric_value for one in found}
    for target in ("deep", "shallow"):
        (row,) = (
            r for r in rows if (r["target"], r["configuration"], r["subset"]) == (target, "lora4", "all")
        )
        # Written with four digits.
        assert scores[target, "robust_sigma"] == pytest.approx(row["sigma"], rel=1e-3)
        assert scores[target, "r_squared"] == pytest.approx(row["r2"], rel=1e-3)


def test_every_score_of_the_table_is_in_the_card_of_the_run(run):
    folder, rows = run
    card = make_card(read_shared(folder), OPTIONS)
    for row in rows:
        wanted = ("sigma", "r2", "bias") if row["subset"] == "all" else ("sigma",)
        if row["subset"] != "fe_h>=-1":
            assert all(value_and_interval(row, name) in card for name in wanted)
    assert f"deep: {STARS} stars with fe_h from -2." in card
    assert f"Each of {SEEDS} random splits tests {STARS} of them" in card
    assert "`kernel-ridge`, without the base model" in card
    assert "MILES; cite it." in card
    assert (
        "deep: lora4: the 68% and 95% intervals of single seeds contain 71% [50, 50] and 94% [50, 50]" in card
    )


def test_the_card_of_an_adapter_has_the_scores_of_its_target_alone(run):
    folder, rows = run
    path = folder / "adapters" / "shallow" / "lora4"
    card = make_card(read_shared(path), OPTIONS)
    assert "shallow" in card
    assert "deep" not in card.replace("`deep`", "")
    assert load_adapter(path).digest[:12] in card
    row = next(r for r in rows if r["target"] == "shallow" and r["configuration"] == "lora4")
    assert value_and_interval(row, "sigma") in card
    assert "lora4 3" in card  # the rank of its factors


def test_an_adapter_without_its_run_says_so(run, tmp_path):
    folder, _ = run
    for path in (folder / "adapters/deep/lora4").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    card = make_card(read_shared(tmp_path), OPTIONS)
    assert "stars and scores" in card
    assert "model-index" not in header_of(card)


def test_no_path_and_no_star_of_the_run_is_shared(run):
    folder, _ = run
    shared = read_shared(folder)
    assert set(shared.files) == {
        "table.json",
        "calibration.json",
        "sigma.png",
        *(
            f"adapters/{target}/lora4/{name}"
            for target in ("deep", "shallow")
            for name in ("manifest.json", "config.json", "weights.safetensors")
        ),
    }
    assert all(map(is_shared, shared.files))
    assert not any(
        map(is_shared, ("README.md", "model.bin", "predictions.ecsv", "a/config.json", "adapters/x.py"))
    )
    card = make_card(shared, OPTIONS)
    assert "secret" not in card
    assert "`spectra.h5`" in card
    assert "star-1" not in card + "".join(
        path.read_text() for path in shared.files.values() if path.suffix == ".json"
    )


@pytest.mark.parametrize("name", SHIPPED)
def test_the_card_of_a_model_counts_what_its_folder_holds(name):
    shared = read_shared(shipped_folder(name))
    card = make_card(shared, OPTIONS)
    count = sum(np.size(leaf) for leaf in _leaves(shared.model.arrays["params"]))
    assert f"| parameters | {count:,} |" in card
    assert shared.model.digest in card
    assert "foundation-model" in header_of(card)["tags"]
    assert local_paths(shared) == []


def _leaves(tree):
    return [x for leaf in tree.values() for x in (_leaves(leaf) if isinstance(leaf, dict) else [leaf])]


def test_an_adapter_of_a_model_that_ships_names_it(tmp_path):
    digest = load_model(shipped_folder("mini")).digest
    tmp_path.joinpath("run").mkdir()
    write_run(tmp_path / "run", base=digest, targets=("deep",))
    card = make_card(read_shared(tmp_path / "run"), OPTIONS)
    assert "--model mini --adapter hf://someone/thing/adapters/deep/lora4" in card


def test_other_folders_and_damaged_ones_are_refused(run, tmp_path):
    with pytest.raises(ModelError, match="no model, adapter or run folder"):
        read_shared(tmp_path)
    (tmp_path / "table.json").write_text("[]")
    with pytest.raises(ModelError, match="without adapters"):
        read_shared(tmp_path)
    write_run(tmp_path, targets=("deep",))
    (tmp_path / "table.json").write_text("{")
    with pytest.raises(DataError, match=r"table\.json"):
        read_shared(tmp_path)
    (tmp_path / "adapters/deep/lora4/config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"config\.json is damaged"):
        read_shared(tmp_path)


def test_paths_in_a_configuration_are_found(tmp_path):
    config = {"model": {"name": "x"}, "training": {"spectra": ["/data/a.h5", "b.h5"], "steps": 3}}
    save_model(tmp_path / "model", config=config, arrays={"params": {"a": np.ones(2)}})
    shared = read_shared(tmp_path / "model")
    assert local_paths(shared) == ["/data/a.h5"]
    assert "spectra: a.h5, b.h5" in make_card(shared, OPTIONS)
