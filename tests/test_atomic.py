import os

import pytest

from specjax.atomic import atomic_file, atomic_folder, previous_folder, recover_folder
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
