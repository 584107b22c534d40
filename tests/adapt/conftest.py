import pytest

from specjax.foundation import load
from tests import synthetic


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The synthetic model, loaded from a folder so that adapters can name it."""
    folder = tmp_path_factory.mktemp("model") / "model"
    synthetic.foundation().save(folder)
    return load(folder)
