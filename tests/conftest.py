import os

import matplotlib
import pytest

matplotlib.use("Agg")


def pytest_configure(config):
    """Run on the CPU, for which the tolerances are set, unless the tests for an accelerator are selected."""
    if config.option.markexpr.strip() != "gpu":
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ["SPECJAX_FEATURES_MIB"] = "0"  # no test takes features from the cache


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    """Keep tests away from the user's cache unless SPECJAX_CACHE is set."""
    if "SPECJAX_CACHE" not in os.environ:
        monkeypatch.setenv("SPECJAX_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="module")
def quick_compilation():
    """Compile the programs of a test module with few optimizations."""
    from tests import synthetic

    with synthetic.quick_compilation():
        yield
