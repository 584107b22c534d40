"""The folder of training states and the settings that it belongs to."""

import pytest

from specjax.errors import DataError
from specjax.pretrain import states
from specjax.pretrain.states import check_states, states_of


def test_states_are_resumed_with_the_same_settings_only(tmp_path):
    folder = states_of(tmp_path / "model")
    check_states(folder, "{}", resume=False)
    check_states(folder, "{}", resume=True)
    with pytest.raises(DataError, match="--resume"):
        check_states(folder, "{}", resume=False)
    with pytest.raises(DataError, match="other options"):
        check_states(folder, "[]", resume=True)


def test_settings_are_whole_or_absent_while_they_are_written(tmp_path, monkeypatch):
    folder, whole = states_of(tmp_path / "model"), "x" * 10_000
    check_states(folder, whole, resume=False)
    seen = []
    replace = states.atomic_file

    def looking(path):
        seen.append(path.read_text())
        return replace(path)

    monkeypatch.setattr(states, "atomic_file", looking)
    check_states(folder, whole, resume=True)
    assert (folder / "settings.json").read_text() == whole
    assert seen == [whole]
