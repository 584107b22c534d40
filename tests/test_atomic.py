import os

import pytest

from specjax.atomic import atomic_file, atomic_folder, previous_folder, recover_folder


def test_a_file_is_replaced_whole(tmp_path):
    path = tmp_path / "new" / "table.json"
    for text in ("first", "second"):
        with atomic_file(path) as temporary:
            assert temporary.suffix == ".json"
            temporary.write_text(text)
        assert path.read_text() == text
    assert [p.name for p in path.parent.iterdir()] == ["table.json"]


def test_a_file_is_readable_by_whom_the_umask_lets(tmp_path):
    old = os.umask(0o022)
    try:
        with atomic_file(tmp_path / "a.txt") as temporary:
            temporary.write_text("x")
    finally:
        os.umask(old)
    assert (tmp_path / "a.txt").stat().st_mode & 0o777 == 0o644


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "table.json"
    path.write_text("old")
    with pytest.raises(RuntimeError), atomic_file(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["table.json"]


def test_an_error_leaves_the_old_folder_and_nothing_else(tmp_path):
    path = tmp_path / "model"
    with atomic_folder(path) as temporary:
        (temporary / "a").write_text("old")
    with pytest.raises(RuntimeError), atomic_folder(path) as temporary:
        (temporary / "a").write_text("half")
        raise RuntimeError
    assert (path / "a").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_a_folder_set_aside_comes_back_only_when_it_is_needed(tmp_path):
    path = tmp_path / "model"
    previous_folder(path).mkdir()
    recover_folder(path)
    assert path.is_dir()
    previous_folder(path).mkdir()
    recover_folder(path)
    assert path.is_dir()
    assert not previous_folder(path).exists()
