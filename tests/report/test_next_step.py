import shlex

import pytest

from specjax.cli import main
from specjax.report.next_step import best_adapter, predict_command


def row(configuration, sigma, label="fe_h", subset="all", target="t"):
    return {
        "target": target, "configuration": configuration, "sigma": sigma, "label": label, "subset": subset
    }  # fmt: skip


def a_run(folder, *names):
    for name in names:
        (folder / "adapters" / "t" / name).mkdir(parents=True)
    return folder


def test_the_adapters_of_the_smallest_scatter_are_found(tmp_path):
    """Not a baseline, nor the mean over seeds, which have no adapters, nor another subset."""
    run = a_run(tmp_path, "lora2", "lora4")
    rows = [row("gp", 0.01), row("lora2", 0.1), row("lora4", 0.2), row("lora4", 0.01, subset="fe_h<-1")]
    assert best_adapter(run, rows) == run / "adapters" / "t" / "lora2"
    assert best_adapter(run, [row("gp", 0.01)]) is None


def test_several_labels_are_compared_without_their_units(tmp_path):
    """lora4 is three times better in Teff, lora2 twice in [Fe/H]."""
    run = a_run(tmp_path, "lora2", "lora4")
    rows = [row("lora2", 0.1), row("lora4", 0.2), row("lora2", 300.0, "teff"), row("lora4", 100.0, "teff")]
    assert best_adapter(run, rows).name == "lora4"


def test_unknown_scatters_come_last(tmp_path):
    run = a_run(tmp_path, "lora2", "lora4")
    assert best_adapter(run, [row("lora2", float("nan")), row("lora4", 0.2)]).name == "lora4"


@pytest.mark.parametrize("model", ["mini", "a model"])
def test_the_command_is_one_that_the_shell_and_specjax_take(tmp_path, capsys, model):
    words = shlex.split(predict_command(tmp_path / "my run" / "lora4", {"model": model}))
    assert words[:2] == ["specjax", "predict"]
    assert str(tmp_path / "my run" / "lora4") in words
    assert ("--model" in words) == (model != "mini")
    assert main(words[1:]) == 1  # it is parsed, and what it names is not there
    # The spectra are the first that is missed where the model is there.
    missing = "SPECTRA does not exist" if model == "mini" else f"there is no model {model}"
    assert missing in capsys.readouterr().err
