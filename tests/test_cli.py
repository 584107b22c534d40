import json
import subprocess
import sys
import tomllib

import jax
import numpy as np
import pytest

import specjax
from specjax import cli
from specjax.adapt.settings import AdaptConfig
from specjax.config import get_preset
from specjax.errors import ModelError, SpecjaxError
from specjax.report.counts import count_parameters

PAPER = {  # published counts; specclip is the file specclip_model_predrecon_mlp.ckpt
    "lamost_encoder": 42_677_013,
    "xp_autoencoder": 42_846_129,
    "lora1": 129_024,
    "lora2": 31_752,
    "lora3": 147_456,
    "lora4": 31_752,
    "label_head": 1_348_353,
    "specclip": 168_293_752,
}


@pytest.fixture
def calls(monkeypatch, tmp_path):
    """Replace the functions that subcommands call by stubs that record their arguments; paths exist."""
    made = {}
    monkeypatch.chdir(tmp_path)
    for name in ("s.npz", "t.csv", "one.fits", "two.fits", "m", "a", "b"):
        (tmp_path / name).touch()

    def stub(module, name, result=None):
        def record(*args, **options):
            made[name] = (args, options)
            return result

        monkeypatch.setattr(f"{module}.{name}", record, raising=False)

    stub("specjax.services.stellar_libraries", "fetch_stellar_libraries", "cache/stellar-libraries")
    stub("specjax.pretrain.run", "pretrain")
    stub("specjax.adapt.survey", "adapt_survey", [])
    stub("specjax.pipeline.predict", "predict_survey")
    stub("specjax.report.results", "print_table")
    stub("specjax.report.results", "read_calibration", [])
    stub("specjax.cache", "use_compilation_cache")
    return made


def test_parameter_counts_of_the_paper_preset_are_the_published_ones(capsys):
    assert cli.main(["info", "--preset", "paper", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == PAPER


def test_info_prints_a_readable_table_by_default(capsys):
    assert cli.main(["info", "--preset", "mini"]) == 0
    out = capsys.readouterr().out
    assert f"{count_parameters(get_preset('mini'))['lora4']:,}" in out


def test_info_describes_spectra(tmp_path, capsys):
    path = tmp_path / "survey.npz"
    flux = np.ones((3, 200))
    flux[0, :100] = np.nan
    np.savez(path, wavelength=np.linspace(4000.0, 5600.0, 200), flux=flux, id=np.array(["a", "b", "c"]))
    assert cli.main(["info", str(path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["spectra"], found["pixels"], found["wavelength_min_angstrom"]) == (3, 200, 4000.0)
    assert found["masked_fraction"] == pytest.approx(1 / 6, abs=1e-4)  # rounded to four digits


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("info --preset nope", "nope"),
        ("info --preset mini --model mini", "one thing"),
        ("info --model {tmp}", "not a specjax model"),
        ("info {tmp}/nothing", "nothing"),
        ("predict --adapter {tmp} -o {tmp}/labels.ecsv", "needs spectra"),
    ],
)
def test_an_error_of_the_user_is_one_line_with_status_one(tmp_path, capsys, line, message):
    assert cli.main(line.format(tmp=tmp_path).split()) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("specjax: error: ")
    assert message in err
    assert err.count("\n") == 1
    with pytest.raises(SpecjaxError):
        cli.main([*line.format(tmp=tmp_path).split(), "--debug"])


def test_multi_line_errors_and_os_errors_are_one_line(monkeypatch, capsys, calls):
    for error in (ModelError("first\n  second"), PermissionError(13, "Permission denied", "/out")):

        def fail(*_, error=error, **__):
            raise error

        monkeypatch.setattr("specjax.services.stellar_libraries.fetch_stellar_libraries", fail)
        assert cli.main(["fetch", "stellar-libraries"]) == 1
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        assert "first second" in err or "Permission denied" in err


@pytest.mark.parametrize(("error", "status"), [(None, 0), (ModelError("no"), 1), (KeyboardInterrupt(), 130)])
def test_run_exits_with_a_status(error, status, capsys):
    def program():
        if error is not None:
            raise error
        return [1]

    with pytest.raises(SystemExit) as caught:
        cli.run(program)
    assert caught.value.code == status
    assert capsys.readouterr().err.count("\n") == (status > 0)


def test_an_unexpected_exception_is_not_caught(monkeypatch, calls):
    def fail():
        raise ZeroDivisionError

    monkeypatch.setattr("specjax.services.stellar_libraries.fetch_stellar_libraries", fail)
    with pytest.raises(ZeroDivisionError):
        cli.main(["fetch", "stellar-libraries"])


@pytest.mark.parametrize("line", ["fetch everything", "adapt", "info --preset", "nonsense"])
def test_usage_errors_exit_with_status_two(line, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(line.split())
    assert caught.value.code == 2


def test_the_commands_of_the_readme_call_the_library(calls, capsys):
    assert cli.main(["fetch", "stellar-libraries"]) == 0
    assert capsys.readouterr().out == "cache/stellar-libraries\n"
    assert cli.main("pretrain --preset mini --out model --seed 3 --resume".split()) == 0
    _, options = calls["pretrain"]
    assert (options["preset"], str(options["out"]), options["seed"], options["resume"]) == (
        "mini",
        "model",
        3,
        True,
    )
    line = (
        "adapt --model mini --spectra s.npz --labels t.csv --label fe_h --configuration lora2 lora4 --seeds 4"
    )
    assert cli.main([*line.split(), "--wavelength-medium", "air", "--out", "run"]) == 0
    _, options = calls["adapt_survey"]
    assert options["configurations"] == ("lora2", "lora4")
    assert (options["config"].seeds, options["config"].train, options["config"].validate) == (4, None, None)
    assert (str(options["spectra"]), options["survey"], options["wavelength_medium"]) == (
        "s.npz",
        None,
        "air",
    )
    assert cli.main("predict --model m --adapter a one.fits two.fits -o labels.ecsv".split()) == 0
    _, options = calls["predict_survey"]
    assert [str(p) for p in options["spectra"]] == ["one.fits", "two.fits"]
    assert (str(options["out"]), options["model"]) == ("labels.ecsv", "m")


def test_an_interrupt_says_what_is_kept(calls, monkeypatch, capsys):
    def interrupted(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("specjax.adapt.survey.adapt_survey", interrupted)
    monkeypatch.setattr("specjax.prepare.prepare_spectra", interrupted)
    assert cli.main("adapt --spectra s.npz --labels t.csv --out run".split()) == 130
    assert capsys.readouterr().err.splitlines() == [
        "finished seeds are kept: run the same command again to go on with run",
        "specjax: interrupted",
    ]
    assert cli.main("prepare s.npz -o p.h5".split()) == 130
    assert "finished files are kept" in capsys.readouterr().err


def test_several_labels_and_adapters_are_taken(calls):
    line = "adapt --spectra s.npz --labels t.csv --label teff fe_h --configuration lora2 --out run"
    assert cli.main(line.split()) == 0
    assert calls["adapt_survey"][1]["label"] == ("teff", "fe_h")
    files = calls["adapt_survey"][1]["files"](AdaptConfig(seeds=3, train=46))
    found = tomllib.loads(files["run.toml"])
    assert (found["label"], found["seeds"], found["train"]) == (["teff", "fe_h"], 3, 46)
    assert cli.main("predict --adapter a --adapter b one.fits -o labels.ecsv".split()) == 0
    _, options = calls["predict_survey"]
    assert [str(path) for path in options["adapter"]] == ["a", "b"]
    assert [str(path) for path in options["spectra"]] == ["one.fits"]


def test_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == specjax.__version__


@pytest.mark.parametrize(
    ("line", "heavy"),
    [
        ("import specjax", ("jax", "astropy", "matplotlib", "scipy", "numpy")),
        ("import specjax.cli", ("jax", "astropy", "matplotlib", "scipy", "numpy")),
        ("import specjax.checkpoints, checkpoints_convert", ("jax", "flax", "torch")),
    ],
)
def test_importing_is_light(line, heavy):
    code = f"import sys; {line}; print([m for m in {heavy!r} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    # tyro checks whether jax or numpy has been imported, and imports neither.
    assert out.strip() == "[]"


@pytest.mark.parametrize("line", ["info --preset paper", "--version", "adapt --help"])
def test_what_needs_no_arrays_imports_none(line):
    """Neither slow packages nor NumPy, so that the answer comes at once."""
    code = f"""
import sys
from specjax import cli
try:
    cli.main({line.split()!r})
except SystemExit:
    pass
slow = ("jax", "flax", "astropy", "matplotlib", "scipy", "numpy", "h5py")
print([module for module in slow if module in sys.modules], file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout
    assert done.stderr.strip() == "[]"


def test_public_names_are_imported_on_first_use():
    from specjax.spectra import Spectra
    from specjax.surveys import read

    assert specjax.Spectra is Spectra
    assert specjax.read is read
    assert specjax.SpecjaxError is SpecjaxError
    assert set(dir(specjax)) == {"SpecjaxError", "Spectra", "__version__", "load", "qtable", "read"}
    with pytest.raises(AttributeError, match="nothing"):
        _ = specjax.nothing


def test_the_compilation_cache_is_in_the_chosen_folder(tmp_path, monkeypatch):
    from specjax.cache import use_compilation_cache

    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    monkeypatch.setenv("SPECJAX_CACHE", str(tmp_path))
    try:
        use_compilation_cache()
        assert jax.config.jax_compilation_cache_dir == str(tmp_path / "jax")
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
    monkeypatch.setenv("SPECJAX_CACHE", str(tmp_path / "file"))
    (tmp_path / "file").write_text("in the way")
    use_compilation_cache()  # a folder that cannot be created is not an error
    assert jax.config.jax_compilation_cache_dir == before["jax_compilation_cache_dir"]
