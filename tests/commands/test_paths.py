import subprocess
import sys
from pathlib import Path

import pytest

from specjax.cli import main
from specjax.commands import paths
from specjax.errors import ConfigError, DataError
from specjax.foundation.model import SHIPPED


@pytest.fixture
def spectra(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "one.csv").write_text("wavelength,flux\n")
    (tmp_path / "labels.csv").write_text("id,fe_h\n")
    (tmp_path / "one.h5").touch()
    return tmp_path / "one.csv"


def test_the_names_of_the_models_that_ship_are_the_same():
    assert paths._SHIPPED == SHIPPED


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("adapt --spectra none.npz --labels labels.csv --out run", "none.npz does not exist (--spectra)"),
        ("adapt --spectra one.csv --labels none.csv --out run", "none.csv does not exist (--labels)"),
        ("adapt --spectra one.csv --labels labels.csv --xp no.csv --out run", "no.csv does not exist (--xp)"),
        (
            "adapt --spectra one.csv --labels labels.csv --model mine --out run",
            "there is no model mine: give",
        ),
        ("predict none.csv -o a.csv", "none.csv does not exist"),
        ("predict @none.txt -o a.csv", "none.txt does not exist"),
        ("predict one.csv --adapter runs/mine -o a.csv", "runs/mine does not exist (--adapter)"),
        ("predict one.csv -o one.csv", "one.csv is read and would be written: give another name"),
        ("embed one.csv --model mine -o a.h5", "there is no model mine"),
        ("translate none.csv --to gaia_xp -o a.h5", "none.csv does not exist"),
        ("similar one.csv --catalogue none.h5 -o a.csv", "none.h5 does not exist (--catalogue)"),
        ("show none.csv", "none.csv does not exist"),
        ("prepare one.h5 -o one.h5", "one.h5 is read and would be written"),
        ("prepare one.csv --xp one.h5 -o one.h5", "one.h5 is read and would be written"),
        ("similar one.csv --catalogue one.h5 -o one.h5", "one.h5 is read and would be written"),
        ("translate one.csv --to gaia_xp --truth one.h5 -o one.h5", "one.h5 is read and would be written"),
        ("split labels.csv -o labels.csv", "labels.csv is read and would be written"),
        ("label one.csv --catalogue labels.csv -o labels.csv", "labels.csv is read and would be written"),
    ],
)
def test_paths_are_checked_before_jax_is_loaded(words, message, spectra):
    """In a new process, which must not have imported it when the line appears."""
    code = (
        "import sys; from specjax.cli import main; status = main(sys.argv[1:]);"
        " print('jax' in sys.modules, status)"
    )
    done = subprocess.run([sys.executable, "-c", code, *words.split()], capture_output=True, text=True)
    assert done.stdout.split() == ["False", "1"]
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_what_cannot_be_checked_is_left_to_others(spectra):
    paths.check_exist(adapter=Path("hf://owner/name"), xp=None, spectra=spectra)
    paths.check_model("hf://owner/name")
    paths.check_sources([Path("night-*/*.fits")], spectra)
    with pytest.raises(DataError):
        paths.check_exist(adapter=[Path("hf://owner/name"), spectra / "none"])
    with pytest.raises(ConfigError):
        paths.check_sources([spectra], spectra.parent / "." / spectra.name)


def test_the_first_missing_path_is_named_and_nothing_is_written(spectra, capsys):
    assert main(["adapt", "--spectra", "a", "--labels", "b", "--out", "run"]) == 1
    assert capsys.readouterr().err.strip() == "specjax: error: a does not exist (--spectra)"
    assert sorted(path.name for path in spectra.parent.iterdir()) == ["labels.csv", "one.csv", "one.h5"]
