"""Options in TOML files: what they give is what the command line gives."""

import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
import tyro

from specjax import cli
from specjax.commands.adapt import Adapt
from specjax.commands.fetch import Fetch
from specjax.commands.hosts import Hosts
from specjax.commands.options_file import options_text, read_options
from specjax.commands.predict import Predict
from specjax.commands.pretrain import Pretrain
from specjax.errors import ConfigError

LINES = {
    "adapt": "--spectra s.npz --labels t.csv --out run --label teff fe_h --configuration lora2 lora4"
    " --seeds 4 --fuse --ranks q_proj 0 out_proj 2 --wavelength-medium air --fwhm 3.5 --distributed --wait 7",
    "predict": "one.fits two.fits --adapter a --adapter b --list more.txt --model m -o labels.ecsv --dry-run",
    "embed": "one.fits -o vectors.h5 --tokens",
    "info": "spectra.npz --json",
    "label": "spectra --catalogue c.fits -o l.ecsv --cuts snr star --radius 2",
    "plan": "--instrument desi --out plan --stars 20 40 --snr 10 30.5",
    "prepare": "raw --out survey.h5 --fwhm-from 1.8 --xp a.csv b.csv",
    "pretrain": "--out model --from one two --no-degraded-copies --ema 0.5 --stages backbone heads",
    "simulate": "--instrument lamost -o s.h5 --n 5 --snr 10 20",
    "split": "labels.ecsv -o stars.ecsv --test 4 --stratify fe_h",
    "fetch desi": "1 2 --out desi --radius 2",
    "fetch gaia-xp": "--out xp 3",
    "fetch specclip": "repo --only *.ckpt",
    "fetch stellar-libraries": "",
}


def parsed(line):
    """The command of a line, or the source of a fetch."""
    command = cli._parse(line.split())
    return command.source if isinstance(command, Fetch) else command


@pytest.mark.parametrize("name", LINES)
def test_a_file_gives_what_the_command_line_gives(name, tmp_path):
    """Every option of every command survives the file, paths made absolute."""
    given = parsed(f"{name} {LINES[name]}")
    (tmp_path / "run.toml").write_text(options_text(given, without=("config",)))
    read = parsed(f"{name} --config {tmp_path / 'run.toml'}")
    assert read.config == tmp_path / "run.toml"
    assert options_text(read, without=("config",)) == options_text(given, without=("config",))
    assert replace(read, config=None) == _absolute(given)


def _absolute(command):
    """The command with its paths as the file has them."""

    def absolute(value):
        if isinstance(value, tuple):
            return tuple(map(absolute, value))
        return value.absolute() if isinstance(value, Path) else value

    model = {"model": str(Path(command.model).absolute())} if getattr(command, "model", "mini") == "m" else {}
    return replace(command, **{name: absolute(value) for name, value in vars(command).items()} | model)


def test_options_on_the_command_line_win(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text(
        'spectra = "s.npz"\nlabels = "t.csv"\nout = "run"\nseeds = 4\nfuse = true\nlabel = "teff"\n'
    )
    command = parsed(f"adapt --config {path} --out other --seeds 8 --no-fuse")
    assert (command.out, command.seeds, command.fuse, command.label) == (Path("other"), 8, False, ("teff",))
    path.write_text('adapter = ["a", "b"]\nspectra = ["one.fits"]\n')
    command = parsed(f"predict --config={path} --adapter c -o labels.ecsv")
    assert (command.adapter, command.spectra) == ((Path("c"),), (Path("one.fits"),))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed = 4", r"there is no option 'seed'; is it 'seeds'\?"),
        ("one_splits = true", r"'one_splits'; is it 'one-split'\?"),
        ("zebra = 4", r"there is no option 'zebra'$"),
        ('seeds = "many"', "seeds must be an integer, not 'many'"),
        ("seeds = true", "seeds must be an integer, not True"),
        ("fuse = 1", "fuse must be true or false, not 1"),
        ("spectra = 3", "spectra must be a path, not 3"),
        ('dtype = "float64"', "dtype must be one of auto, float32, bfloat16, not 'float64'"),
        ('ranks = [["q_proj"]]', "ranks must be a list of 2 values"),
        ("[adapt]\nseeds = 4", "there is no option 'adapt'"),
        ("seeds = = 4", "is not a TOML file"),
        (None, "cannot be read: No such file"),
    ],
)
def test_a_bad_file_is_an_error_of_one_line(tmp_path, capsys, text, message):
    path = tmp_path / "run.toml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        read_options(path, Adapt)
    assert str(path) in str(caught.value)
    assert cli.main(["adapt", "--config", str(path)]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_what_is_required_may_be_in_either_place(tmp_path, capsys):
    path = tmp_path / "run.toml"
    path.write_text('spectra = "s.npz"\n')
    assert read_options(path, Adapt).labels is tyro.MISSING
    with pytest.raises(SystemExit) as caught:
        cli.main(["adapt", "--config", str(path), "--out", "run"])
    assert caught.value.code == 2
    assert "--labels" in capsys.readouterr().err


def test_the_file_of_a_run_leaves_out_the_folder_and_the_processes():
    command = Adapt(spectra=Path("s"), labels=Path("/t"), out=Path("run"), hosts=Hosts(distributed=True))
    found = tomllib.loads(options_text(command))
    assert not {"out", "config", "distributed", "wait"} & set(found)
    assert found["spectra"] == str(Path("s").absolute())
    assert (found["labels"], found["seeds"], found["label"]) == ("/t", 16, ["fe_h"])


@pytest.mark.parametrize("name", ['quote " and \\ back', "line\nbreak", "bell \x07 and \x7f", "Ångström", ""])
def test_any_text_survives(name, tmp_path):
    text = options_text(Predict(out=Path("/o"), survey=name))
    assert tomllib.loads(text)["survey"] == name


def test_from_is_named_as_on_the_command_line():
    assert 'from = ["/one"]' in options_text(Pretrain(out=Path("/m"), start=(Path("/one"),)))


@pytest.mark.parametrize("name", LINES)
def test_help_shows_the_types_that_options_take(name, capsys):
    with pytest.raises(SystemExit):
        cli.main([*name.split(), "--help"])
    text = capsys.readouterr().out
    assert "--config PATH" in text
    assert "{None" not in text
    assert "None}" not in text


def test_reading_a_file_is_as_light_as_the_command_line():
    code = (
        "import sys, specjax.cli, specjax.commands.options_file;"
        "print([m for m in ('jax', 'numpy', 'astropy', 'scipy', 'matplotlib') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"
