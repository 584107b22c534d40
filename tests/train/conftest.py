import pytest

from tests.train import synthetic


@pytest.fixture(scope="module")
def quick_compilation():
    """Compile this module's programs with few optimizations."""
    with synthetic.quick_compilation():
        yield
