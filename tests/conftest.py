import os

import matplotlib
import pytest

matplotlib.use("Agg")


def pytest_configure(config):
    """Keep to the CPU, where the tolerances hold, unless the tests for an accelerator are asked for."""
    if config.option.markexpr.strip() != "gpu":
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ["SPECJAX_FEATURES_MIB"] = "0"  # what a test computes, it computes


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    """No test reads or writes the user's cache unless the caller names one."""
    if "SPECJAX_CACHE" not in os.environ:
        monkeypatch.setenv("SPECJAX_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="module")
def quick_compilation():
    """Compile this module's programs with few optimizations."""
    from tests import synthetic

    with synthetic.quick_compilation():
        yield
