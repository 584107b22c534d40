"""The campaigns of damage notice what is not noticed."""

import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from benchmarks.reliability import damage, forks, kills, kinds
from benchmarks.reliability.commands import Command, environment_of
from benchmarks.reliability.limits import output_state
from specjax.errors import DataError
from specjax.surveys import read


def counts(kind, change):
    return damage.campaign(kind, change, 60, np.random.default_rng(0))


def test_flips_of_a_file_without_checksums_are_silent_and_of_one_with_them_refused(tmp_path):
    before = kinds.fits_plain(tmp_path).files[0].read_bytes()
    plain, packed = kinds.fits_plain(tmp_path), kinds.fits_gz(tmp_path)
    assert counts(plain, damage.flip)["silent"] > 10
    assert plain.files[0].read_bytes() == before
    found = counts(packed, damage.flip)
    assert found["refused"] > 50
    assert found["silent"] == found["crash"] == 0


def test_an_exception_that_is_not_of_specjax_is_a_crash(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("1 2 3")

    def read():
        return {"a": np.array([int(word) for word in path.read_text().split()])}

    found = counts(kinds.Kind(files=[path], read=read, guarded="nothing"), damage.flip)
    assert found["crash"] > 0
    assert found["silent"] > 0


@pytest.mark.parametrize(
    ("event", "arguments", "counts"),
    [
        ("open", ("/out/a", "r", os.O_RDONLY), False),
        ("open", ("/out/a", None, os.O_RDWR | os.O_CREAT), True),
        ("open", ("/elsewhere", "w", os.O_WRONLY), False),
        ("open", (3, "w", os.O_WRONLY), False),
        ("os.rename", ("/out/.a", "/out/a", -1, -1), True),
        ("os.remove", ("000000.npz", 7), True),
    ],
)
def test_changes_of_files_in_a_folder_are_told_from_other_events(event, arguments, counts):
    assert forks._changes(event, arguments, "/out") == counts


def test_an_output_is_absent_whole_or_damaged(tmp_path):
    def read_numbers(path):
        if not path.read_text():
            raise DataError("empty")
        return np.array([float(word) for word in path.read_text().split()])

    command, out = Command(words=(), out="o", read=read_numbers), tmp_path / "o"
    found = []
    for text in (None, "", "1 3", "1 2"):
        if text is not None:
            out.write_text(text)
        found.append(output_state(command, out, np.array([1.0, 2.0])))
    assert found == ["absent", "damaged", "damaged", "whole"]


BOUND = """
import sys
from pathlib import Path
from benchmarks.reliability.limits import Limit
folder = Path(sys.argv[1])
Limit(bound=True).take()
for name, mode in (("closed", 0o555), ("open", 0o755)):
    folder.chmod(mode)
    try:
        (folder / name).touch()
    except PermissionError:
        print(name)
"""


def test_permissions_bind_a_process_without_the_privileges_of_root(tmp_path):
    done = subprocess.run([sys.executable, "-c", BOUND, tmp_path], capture_output=True, text=True, check=True)
    assert done.stdout == "closed\n"
    assert [path.name for path in tmp_path.iterdir()] == ["open"]


@pytest.fixture
def context(tmp_path):
    """Processes that are forked after the imports."""
    with forks.forking(environment_of(tmp_path / "cache")) as found:
        yield found


@pytest.mark.slow
def test_a_command_is_killed_before_a_change_of_its_files_and_continued(tmp_path, context):
    stars = kinds.write_stars(tmp_path / "stars", 3)
    words = ("prepare", str(stars), "--out", "OUT", "--workers", "1")
    trial = kills.Trial(
        Command(words=words, out="p.h5", read=lambda path: np.asarray(read(path).flux)),
        tmp_path / "p",
        context,
    )
    process = trial.start(kill_at=trial.changes - 1)  # when the file is there, and the last part is removed
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert trial.state() == "whole"
    assert trial.fault(trial.start()) == ""
    trial.clear()
    (trial.out.parent / "left").touch()
    assert "left" in trial.fault(trial.start())
    found = kills.kill_at_changes(trial, 2, np.random.default_rng(0))
    assert (found["kills"], found["damaged"], found["faults"]) == (2, 0, [])
