import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from astropy.table import Table

import specjax
from specjax import cli
from specjax.catalogues.labels import join_labels, read_labels
from tests import processes

pytestmark = pytest.mark.usefixtures("quick_compilation")

SUN = {"teff": [5777.0, 5000.0], "logg": [4.44, 2.5], "fe_h": [0.0, -0.5], "id": ["sun", "giant"]}


def run(capsys, *words):
    assert cli.main(["simulate", *map(str, words)]) == 0
    return capsys.readouterr()


def test_a_survey_is_simulated(tmp_path, capsys):
    path = tmp_path / "s.h5"
    out, err = run(capsys, "--instrument", "lamost", "--n", 12, "-o", path, "--snr", 30, 40, "--seed", 3)
    assert out == f"{path}\n{tmp_path}/s_labels.ecsv\n"
    assert "3962-5638 A (of 3700-9095 A" in err
    spectra = specjax.read(path)
    assert len(spectra) == 12
    assert ((spectra.meta["snr"] >= 30) & (spectra.meta["snr"] <= 40)).all()


@pytest.mark.parametrize(
    "ranges", [["teff 5000 5500", "fe_h -1 -0.5"], ["teff", "5000", "5500", "fe_h", "-1", "-0.5"]]
)
def test_ranges_are_texts_or_words(tmp_path, capsys, ranges):
    run(capsys, "--instrument", "grism", "--n", 9, "--out", tmp_path / "s.npz", "--ranges", *ranges)
    meta = specjax.read(tmp_path / "s.npz").meta
    assert ((meta["teff"] >= 5000) & (meta["teff"] <= 5500)).all()
    assert ((meta["fe_h"] >= -1) & (meta["fe_h"] <= -0.5)).all()
    assert (meta["velocity"] == 0).all()


def test_the_stars_of_a_table_are_simulated_once_each(tmp_path, capsys):
    Table({**SUN, "teff": [5777.0, 9000.0]}).write(tmp_path / "stars.csv")
    line = ["--instrument", "grism", "-o", tmp_path / "s.npz", "--population", tmp_path / "stars.csv"]
    _, err = run(capsys, *line, "--skip-outside")
    assert "left out 1 of 2 stars" in err
    assert specjax.read(tmp_path / "s.npz").id.tolist() == ["sun"]


def test_an_instrument_is_described_in_a_file(tmp_path, capsys):
    file = tmp_path / "mine.toml"
    file.write_text('preset = "grism"\nfwhm = 30\n')
    run(capsys, "--instrument", file, "--n", 4, "-o", tmp_path / "s.npz")
    assert specjax.read(tmp_path / "s.npz").survey == "simulated-mine"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--instrument muse --n 5 -o {tmp}/s.h5", "no instrument 'muse'"),
        ("--instrument {tmp}/bad.toml --n 5 -o {tmp}/s.h5", "bad.toml: an instrument has no 'colour'"),
        ("--instrument lamost -o {tmp}/s.h5", "the number of spectra"),
        ("--instrument lamost --n 5 -o {tmp}/s.fits", "the suffix"),
        ("--instrument lamost --n 5 -o {tmp}/s.h5 --snr 9 3", "snr must be a range"),
        ("--instrument lamost --n 5 -o {tmp}/s.h5 --ranges age 1 2", "no range of 'age'"),
        ("--instrument lamost --n 5 -o {tmp}/s.h5 --ranges teff 5000 5500 --population t", "not both"),
        ("--instrument lamost -o {tmp}/s.h5 --population {tmp}/none.csv", "no table at"),
        ("--instrument lamost -o {tmp}/s.h5 --population {tmp}/hot.csv", "first giant (teff 9000"),
    ],
)
def test_an_error_of_the_user_is_one_line(tmp_path, capsys, line, message):
    (tmp_path / "bad.toml").write_text('preset = "grism"\ncolour = 1\n')
    Table({**SUN, "teff": [5777.0, 9000.0]}).write(tmp_path / "hot.csv")
    before = sorted(tmp_path.iterdir())
    assert cli.main(["simulate", *line.format(tmp=tmp_path).split()]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert err.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before


def test_the_first_interrupt_stops_the_simulation(tmp_path):
    program = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler);"
        " from specjax.cli import main; sys.exit(main())"
    )
    line = f"simulate --instrument grism --n 200000 -o {tmp_path}/s.h5"
    with subprocess.Popen(
        [sys.executable, "-c", program, *line.split()],
        env={**os.environ, "PYTHONPATH": str(processes.ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            # A chunk has been written, and others are being computed.
            if any(path.suffix == ".h5" and path.stat().st_size > 10**6 for path in tmp_path.iterdir()):
                break
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=120)
    assert (process.returncode, err.splitlines()[-1]) == (130, "specjax: interrupted")
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_the_labels_are_those_of_the_spectra(tmp_path, capsys):
    run(capsys, "--instrument", "desi", "--n", 6, "-o", tmp_path / "s.h5")
    spectra, labels = specjax.read(tmp_path / "s.h5"), read_labels(tmp_path / "s_labels.ecsv", ["fe_h"])
    assert np.isfinite(join_labels(spectra.id, labels, ["fe_h"], partial=False)["fe_h"]).all()
