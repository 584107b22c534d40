import importlib
from types import SimpleNamespace

import pytest

from experiments.suite import __main__ as suite
from experiments.suite import page
from experiments.suite.frame import Kept
from specjax.errors import ConfigError, DataError
from tests.experiments.suite.test_frame import results


@pytest.fixture
def experiments(monkeypatch):
    """Two experiments, of which the first fails at its second row until it is mended."""
    made = []
    broken = [True]

    def run(config, out, say):
        kept = Kept(out, {"seeds": config})
        for key in ("one", "two"):
            if key == "two" and broken[0]:
                raise DataError("the second\nrow cannot be made")
            kept.row(key, lambda key=key: made.append(key) or {"sigma": 1.0})
        return results(name="few_shot")

    def run_other(config, out, say):
        return results(name="fusing", title="Fused", answers={"time": "Soon."}, draw=None)

    modules = {
        "few_shot": SimpleNamespace(get_config=lambda: 2, run=run),
        "fusing": SimpleNamespace(get_config=lambda: 2, run=run_other),
    }
    monkeypatch.setattr(suite, "MINUTES", {"few_shot": 2.0, "fusing": 1.0})
    monkeypatch.setattr(suite, "use_compilation_cache", lambda: None)
    as_before = importlib.import_module  # for what other packages import while the experiments run

    def import_module(name, package=None):
        start, _, last = name.rpartition(".")
        return modules[last] if start == "experiments.suite" else as_before(name, package)

    monkeypatch.setattr(suite.importlib, "import_module", import_module)
    return SimpleNamespace(made=made, broken=broken)


def run(tmp_path, *only):
    said = []
    options = suite.Options(only=only, out=tmp_path / "runs", page=tmp_path / "docs" / "experiments.md")
    failures = suite.main(options, said.append)
    return failures, options.page.read_text(), said


def test_a_failure_is_named_and_does_not_stop_the_others(experiments, tmp_path):
    failures, text, said = run(tmp_path)
    assert failures == {"few_shot": "DataError: the second row cannot be made"}
    assert "This experiment failed: DataError: the second row cannot be made" in text
    assert "## Fused" in text
    assert said[0] == "1/2 few_shot: about 3.0 min left"
    assert said[-1].endswith("; 1 of 2 failed")


def test_a_run_goes_on_where_it_stopped(experiments, tmp_path):
    run(tmp_path)
    experiments.broken[0] = False
    failures, text, _ = run(tmp_path, "few_shot")
    assert not failures
    assert experiments.made == ["one", "two"]  # the first row was not made again
    # The page shows what ran now, and the other experiment as it was last run.
    assert text.index("## Few labels") < text.index("## Fused")


def test_the_page_is_made_of_the_results_alone(experiments, tmp_path):
    experiments.broken[0] = False
    _, text, _ = run(tmp_path)
    head, section = text.split("## Few labels")
    assert "- **How many labels are needed?** Many. ([few_shot](../experiments/suite/few_shot.py))" in head
    assert "Soon." in head
    assert "| lora4 | 0.200 [0.190, 0.210] | 0.500 | ridge | 0.300 [0.290, 0.310] |" in section
    assert "| offset" not in section  # empty in all rows
    assert "- One.\n- Two.\n" in section
    assert "![Few labels](experiments/few_shot.png)" in section
    assert (tmp_path / "docs" / "experiments" / "few_shot.png").exists()
    # Written again from the files, the page is the same.
    again = tmp_path / "docs" / "experiments.md"
    page.write_page(again, tmp_path / "runs", ["few_shot", "fusing"], {})
    assert again.read_text() == text


def test_experiments_without_results_are_named(experiments, tmp_path):
    experiments.broken[0] = False
    _, text, _ = run(tmp_path, "few_shot")
    scripts = "[fusing](../experiments/suite/fusing.py)"
    assert text.endswith(
        f"## Without results\n\nThese experiments have not been run for this page: {scripts}.\n"
    )
    _, text, _ = run(tmp_path)
    assert "Without results" not in text


def test_an_unforeseen_error_leaves_its_traceback(experiments, tmp_path, monkeypatch):
    monkeypatch.setattr(suite, "run_one", lambda *_: 1 / 0)
    failures, _, _ = run(tmp_path, "fusing")
    assert failures == {"fusing": "ZeroDivisionError: division by zero"}
    assert "Traceback" in (tmp_path / "runs" / "fusing" / "error.txt").read_text()


def test_names_are_checked(tmp_path):
    with pytest.raises(ConfigError, match="no experiment 'few_shots': they are "):
        suite.main(suite.Options(only=("few_shots",)))
