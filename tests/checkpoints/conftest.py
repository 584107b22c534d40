import pytest

from specjax import checkpoints
from tests.checkpoints.arrays import CONFIG, some_arrays


@pytest.fixture
def saved(tmp_path):
    folder = tmp_path / "model"
    checkpoints.save_model(folder, config=CONFIG, arrays=some_arrays())
    return folder
