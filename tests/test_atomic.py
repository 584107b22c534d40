import contextlib
import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from specjax import atomic
from specjax.atomic import (
    atomic_file,
    atomic_folder,
    check_folder,
    previous_folder,
    recover_folder,
    remove_folder,
)
from specjax.errors import SpecjaxError


def half_written(path):
    path.write_text("half")
    raise RuntimeError


def test_a_file_is_replaced_atomically(tmp_path):
    path = tmp_path / "new" / "table.json"
    for text in ("first", "second"):
        with atomic_file(path) as temporary:
            assert temporary.suffix == ".json"
            temporary.write_text(text)
        assert path.read_text() == text
    assert [p.name for p in path.parent.iterdir()] == ["table.json"]


def test_a_file_has_the_permissions_of_the_umask(tmp_path):
    old = os.umask(0o022)
    try:
        with atomic_file(tmp_path / "a.txt") as temporary:
            temporary.write_text("x")
    finally:
        os.umask(old)
    assert (tmp_path / "a.txt").stat().st_mode & 0o777 == 0o644


def test_an_error_leaves_only_the_old_file(tmp_path):
    path = tmp_path / "table.json"
    path.write_text("old")
    with pytest.raises(RuntimeError), atomic_file(path) as temporary:
        half_written(temporary)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["table.json"]


def test_an_error_leaves_only_the_old_folder(tmp_path):
    path = tmp_path / "model"
    with atomic_folder(path) as temporary:
        (temporary / "a").write_text("old")
        (temporary / "manifest.json").write_text("{}")
    with pytest.raises(RuntimeError), atomic_folder(path) as temporary:
        half_written(temporary / "a")
    assert (path / "a").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_an_old_folder_is_restored_only_if_there_is_no_new_one(tmp_path):
    path = tmp_path / "model"
    previous_folder(path).mkdir()
    recover_folder(path)
    assert path.is_dir()
    previous_folder(path).mkdir()
    recover_folder(path)
    assert path.is_dir()
    assert not previous_folder(path).exists()


@pytest.mark.parametrize("name", ["notes", "notes/.", "file"])
def test_other_files_and_folders_are_never_replaced(tmp_path, name):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "thesis.tex").write_text("chapter one")
    (tmp_path / "file").write_text("x")
    with pytest.raises(SpecjaxError, match="left unchanged"), atomic_folder(tmp_path / name):
        pytest.fail("the body must not run")
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["file", "notes", "thesis.tex"]


def test_an_empty_folder_and_a_run_folder_are_replaced(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    for _ in range(2):
        with atomic_folder("runs") as temporary:
            (temporary / "table.json").write_text("[]")
    assert [p.name for p in (tmp_path / "runs").iterdir()] == ["table.json"]


def test_a_folder_is_replaced_if_all_its_files_are_known(tmp_path):
    path = tmp_path / "peft"
    path.mkdir()
    (path / "weights").write_text("old")
    with atomic_folder(path, known=("weights",)) as temporary:
        (temporary / "weights").write_text("new")
    assert (path / "weights").read_text() == "new"
    (path / "notes.txt").write_text("mine")
    with pytest.raises(SpecjaxError, match="left unchanged"), atomic_folder(path, known=("weights",)):
        pass
    assert (path / "notes.txt").read_text() == "mine"


WRITER = """
import sys
from specjax.atomic import atomic_file, atomic_folder, scratch_folder
with atomic_file(sys.argv[1] + "/table.json") as file, atomic_folder(sys.argv[1] + "/model") as folder:
    with scratch_folder(sys.argv[1]):
        file.write_text("half")
        (folder / "half").write_text("half")
        print("written", flush=True)
        sys.stdin.read()
"""


@contextlib.contextmanager
def writer(folder):
    """A process that is writing a file and two folders."""
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": environment}
    with subprocess.Popen([sys.executable, "-c", WRITER, str(folder)], **pipes) as process:
        assert process.stdout.readline() == "written\n"
        try:
            yield process
        finally:
            process.kill()


def hidden(folder):
    return [path for path in folder.iterdir() if path.name.startswith(".")]


def write_both(folder):
    atomic._cleaned.clear()
    with atomic_file(folder / "other.json") as temporary:
        temporary.write_text("other")
    with atomic_folder(folder / "run") as temporary:
        (temporary / "table.json").write_text("[]")


def test_only_what_a_killed_process_left_is_removed(tmp_path):
    foreign = tmp_path / ".table-00000000.1.1.abcdefgh.json"  # of another machine
    kept = [foreign, tmp_path / ".table-abcdefgh.json", tmp_path / ".profile"]
    for path in kept:
        path.write_text("x")
    with writer(tmp_path):
        assert len(hidden(tmp_path)) == 6
        write_both(tmp_path)
        assert len(hidden(tmp_path)) == 6
    write_both(tmp_path)
    assert sorted(hidden(tmp_path)) == sorted(kept)


REMOVER = """
import os, shutil, signal, sys
from pathlib import Path
from specjax.atomic import remove_folder

def killed(path, **options):
    next(Path(path).iterdir()).unlink()
    os.kill(os.getpid(), signal.SIGKILL)

shutil.rmtree = killed
remove_folder(Path(sys.argv[1]))
"""


def test_a_folder_whose_removal_is_killed_is_gone_and_its_rest_is_removed_later(tmp_path):
    folder = tmp_path / ".all.h5.parts"
    folder.mkdir()
    for name in ("plan.json", "000000.npz"):
        (folder / name).write_text("x")
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    status = subprocess.run([sys.executable, "-c", REMOVER, folder], env=environment).returncode
    assert status == -signal.SIGKILL
    assert not folder.exists()
    assert len(hidden(tmp_path)) == 1
    write_both(tmp_path)
    assert hidden(tmp_path) == []


def test_a_folder_is_removed_if_it_exists(tmp_path):
    (tmp_path / "parts" / "deeper").mkdir(parents=True)
    remove_folder(tmp_path / "parts")
    remove_folder(tmp_path / "absent" / "parts")
    assert list(tmp_path.iterdir()) == []


def test_a_number_that_another_process_has_now_is_not_its_owner(tmp_path):
    old = (
        tmp_path / f".a-{atomic._machine()}.{os.getpid()}.1.abcdefgh.json"
    )  # started a tick after the machine
    mine = tmp_path / f"{atomic._prefix('a')}abcdefgh.json"
    for path in (old, mine):
        path.write_text("x")
    write_both(tmp_path)
    assert hidden(tmp_path) == [mine]


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a folder that nobody can write")
def test_a_folder_that_cannot_be_written_is_noticed_before_the_work():
    with pytest.raises(SpecjaxError, match="/proc cannot be written"):
        check_folder("/proc/run")


def test_names_of_any_length_can_be_written(tmp_path):
    with atomic_file(tmp_path / f"{'x' * 250}.json") as temporary:
        temporary.write_text("x")
    assert len(list(tmp_path.iterdir())) == 1


def test_an_error_of_the_disk_names_the_file(tmp_path):
    with (
        pytest.raises(OSError, match=r"No space left on device: .*table\.json"),
        atomic_file(tmp_path / "table.json"),
    ):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
