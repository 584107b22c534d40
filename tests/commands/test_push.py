"""`specjax push`, and what it pushed loaded again, through a local hub."""

import sys

import numpy as np
import pytest

import specjax
from specjax import cli
from specjax.checkpoints import load_adapter, load_model, save_model
from specjax.config import get_preset, to_dict
from tests.report.runs import write_run
from tests.services.hub_server import NOWHERE, running_hub, use

pytest.importorskip("huggingface_hub")
# huggingface_hub passes a file to its HTTP client in an old way where it uploads without hf_xet.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

FILES = {"manifest.json", "config.json", "weights.safetensors"}


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with running_hub() as server:
        yield use(server, monkeypatch, tmp_path)


@pytest.fixture
def model(tmp_path):
    """A model and its folder."""
    folder = tmp_path / "model"
    config = {"model": to_dict(get_preset("mini"))}
    save_model(folder, config=config, arrays={"params": {"lamost": {"kernel": np.ones((3, 2))}}})
    return folder


@pytest.fixture
def run(tmp_path, model):
    """A run folder of that model."""
    folder = tmp_path / "run"
    folder.mkdir()
    write_run(folder, base=load_model(model).digest)
    return folder


@pytest.fixture
def push(capsys):
    def call(*words, status=0):
        assert cli.main(["push", *map(str, words)]) == status
        return capsys.readouterr()

    return call


def repository(hub, name="someone/thing"):
    return hub.repositories["models", name]


def test_a_model_is_pushed_and_loaded_again(hub, push, model):
    out, err = push(model, "someone/thing", "--license", "mit", "--private")
    assert out == "hf://someone/thing\n"
    pushed = repository(hub)
    assert pushed.private
    assert set(pushed.files) == {".gitattributes", "README.md", *FILES}
    assert all(pushed.files[name] == (model / name).read_bytes() for name in FILES)
    assert len(pushed.commits) == 2  # creation, and everything at once
    there = specjax.load(f"hf://someone/thing@{pushed.head}")
    assert there.digest == specjax.load(model).digest
    assert pushed.head in err


def test_adapters_of_a_run_are_pushed_and_loaded_again(hub, push, run, tmp_path):
    push(run, "someone/thing", "--license", "mit")
    for target in ("deep", "shallow"):
        there = load_adapter(f"hf://someone/thing/adapters/{target}/lora4")
        assert there.digest == load_adapter(run / "adapters" / target / "lora4").digest
    # One target less: what remains of the first push is removed, what others added is kept.
    files = {**repository(hub).files, "notes.txt": b"mine"}
    hub.add(files, "someone/thing")
    (tmp_path / "other").mkdir()
    write_run(tmp_path / "other", targets=("deep",))
    push(tmp_path / "other", "someone/thing", "--license", "mit")
    names = {f"adapters/deep/lora4/{name}" for name in FILES}
    kept = {".gitattributes", "notes.txt", "README.md", "table.json", "calibration.json", "sigma.png"}
    assert set(repository(hub).files) == names | kept


def test_pushing_the_same_again_changes_nothing(hub, push, model):
    push(model, "someone/thing", "--license", "mit")
    before = dict(repository(hub).files)
    push(model, "someone/thing", "--license", "mit")
    assert repository(hub).files == before


def test_predict_reads_models_and_adapters_from_the_hub(hub, push, model, run, tmp_path, capsys):
    push(model, "someone/base", "--license", "mit")
    push(run / "adapters/deep/lora4", "someone/thing", "--license", "mit", "--base", "someone/base")
    assert b"--model hf://someone/base --adapter hf://someone/thing" in repository(hub).files["README.md"]
    spectra = tmp_path / "spectra.npz"
    spectra.touch()
    line = f"predict --model hf://someone/base --adapter hf://someone/thing {spectra} -o {tmp_path}/o.ecsv"
    assert cli.main([*line.split(), "--dry-run"]) == 0
    assert cli.main([*line.replace("--model hf://someone/base", "").split(), "--dry-run"]) == 1
    assert "hf:/someone/thing was trained on another base model" in capsys.readouterr().err.replace("//", "/")


def test_a_dry_run_writes_the_card_and_asks_nothing(hub, push, run, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    out, err = push(run, "someone/thing", "--license", "mit", "--dry-run")
    assert out == f"{run / 'README.md'}\n"
    assert "adapters/deep/lora4/weights.safetensors" in err
    assert hub.asked == []
    assert (run / "README.md").read_text().startswith("---\nlicense:")


def test_a_card_that_was_edited_is_kept_unless_it_is_of_another_model(hub, push, model):
    push(model, "someone/thing", "--license", "mit", "--dry-run")
    card = model / "README.md"
    card.write_text(card.read_text() + "\nTrained by us.\n")
    push(model, "someone/thing", "--license", "mit")
    assert repository(hub).files["README.md"].endswith(b"Trained by us.\n")
    _, err = push(model, "someone/thing", "--license", "cc-by-4.0", status=1)
    assert "another licence" in err
    card.write_text("another model\n")
    _, err = push(model, "someone/thing", "--license", "mit", status=1)
    assert "describes something else" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("someone/words", "holds nothing of specjax"),
        ("someone/public --private", "exists and is public"),
        ("thing", "OWNER/NAME"),
    ],
)
def test_repositories_that_must_not_be_written(hub, push, model, words, message):
    hub.add({"README.md": b"words", "model.bin": b"0"}, "someone/words")
    hub.add({"README.md": b"words"}, "someone/public")
    before = {key: dict(each.commits) for key, each in hub.repositories.items()}
    out, err = push(model, *words.split(), "--license", "mit", status=1)
    assert message in err.splitlines()[-1]
    assert out == ""
    assert {key: each.commits for key, each in hub.repositories.items()} == before


def test_failures_are_one_line(hub, push, model, monkeypatch):
    line = (model, "someone/thing", "--license", "mit")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert "refuses access" in push(*line, status=1).err.splitlines()[-1]
    monkeypatch.setenv("HF_ENDPOINT", NOWHERE)
    assert "there is no connection" in push(*line, status=1).err.splitlines()[-1]
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert "pip install 'specjax[hub]'" in push(*line, status=1).err.splitlines()[-1]
    assert hub.repositories == {}
    with pytest.raises(SystemExit):  # a licence must be chosen
        cli.main(["push", str(model), "someone/thing"])
