import signal
import subprocess
import sys

import h5py
import numpy as np
import pytest

from specjax import cli
from specjax.checkpoints import TrainingStates
from tests import processes
from tests.pretrain.files import write


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "--preset paper",
            "there are too few spectra here for the preset 'paper': name files with --spectra",
        ),
        ("--stages heads", "--stages needs spectra in files: name them with --spectra or --xp"),
        ("--learning-rate 1e-3", "--learning-rate needs spectra in files"),
        ("--spectra {tmp}/none.h5", "there is no file {tmp}/none.h5"),
        ("--spectra {tmp}/pairs.h5 --preset maxi", "unknown preset 'maxi'"),
        ("--spectra {tmp}/pairs.h5 --preset paper", "39 spectra do not fill a batch of 512; set --batch"),
        ("--spectra {tmp}/pairs.h5 --batch 8 --ema 2", "ema in [0, 1), not 1 and 2.0"),
        ("--spectra {tmp}/pairs.h5 --batch 8 --fsdp 3", "fsdp 3 does not divide 1, the devices"),
        ("--spectra {tmp}/pairs.h5 --labels teff age", "has no column age; its columns are fe_h, teff"),
        ("--spectra {tmp}/xp.h5", "no file has LAMOST spectra to train on"),
    ],
)
def test_an_error_of_the_user_is_one_line(tmp_path, capsys, line, message):
    write(tmp_path / "pairs.h5", {"train": 40})
    write(tmp_path / "xp.h5", {"train": 40}, towers=("gaia_xp",))
    words = line.format(tmp=tmp_path).split()
    words += [] if "--preset" in line else ["--preset", "mini"]
    assert cli.main(["pretrain", "--out", str(tmp_path / "model"), *words]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("specjax: error: ")
    assert message.format(tmp=tmp_path) in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pairs.h5", "xp.h5"]


@pytest.mark.slow
def test_sigterm_saves_the_run_and_says_how_to_go_on(tmp_path):
    path = write(tmp_path / "xp.h5", {"train": 64}, towers=("gaia_xp",))
    words = [
        "--preset",
        "mini",
        "--xp",
        str(path),
        "--stages",
        "autoencoder",
        "--steps",
        "1000000",
        "--batch",
        "8",
    ]
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "specjax",
            "pretrain",
            "--out",
            str(tmp_path / "m"),
            "--report-every",
            "2",
            *words,
        ],
        cwd=processes.ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )
    for line in process.stderr:
        if line.startswith("autoencoder 4/"):
            break
    process.send_signal(signal.SIGTERM)
    last = process.communicate(timeout=300)[1].splitlines()[-1]
    assert process.returncode == 0
    assert last.startswith("specjax: autoencoder is saved after step ")
    assert last.endswith(": repeat the command with --resume to continue")
    with TrainingStates(tmp_path / "m.training" / "autoencoder") as states:
        assert f"after step {states.latest_step()}:" in last


@pytest.mark.slow
def test_a_spectrum_that_is_not_finite_is_masked_and_does_not_stop_the_run(tmp_path):
    path = write(tmp_path / "xp.h5", {"train": 64}, towers=("gaia_xp",))
    with h5py.File(path, "a") as file:
        file["train/spectra"][3] = np.inf
        file["train/spectra"][4, :100] = np.nan
    words = ["--preset", "mini", "--xp", str(path), "--stages", "autoencoder", "--steps", "8", "--batch", "8"]
    assert cli.main(["pretrain", "--out", str(tmp_path / "m"), *words]) == 0
