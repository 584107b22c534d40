"""The commands and scripts of docs/cluster.md, run on processes of this machine."""

import os
import re
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import jax
import numpy as np
import pytest
from astropy.table import Table

from specjax.adapt.configuration import Configuration
from specjax.adapt.start import initial_leaves
from specjax.checkpoints import save_adapter
from specjax.foundation import load
from tests.prepare.stars import write_stars
from tests.processes import ROOT, free_address

pandas = pytest.importorskip("pandas")
pytest.importorskip("dask_jobqueue")
pytest.importorskip("pyarrow")
pytestmark = pytest.mark.slow  # every process compiles the model that ships

PAGE = (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8")
PAGE = PAGE.split("\n## Predicting on a Dask cluster\n")[1].split("\n## ")[0]
STARS = [f"star {number}" for number in range(3)]


def blocks(language, text):
    """Return the code blocks of the page that contain a text."""
    found = [code for code in re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL) if text in code]
    assert found, f"docs/cluster.md has no {text}"
    return found


def replaced(code, changes):
    for old, new in changes.items():
        assert old in code, f"docs/cluster.md has no {old}"
        code = code.replace(old, new)
    return code


@pytest.fixture
def place(tmp_path):
    """A folder with the spectra and the adapter of the page."""
    write_stars(tmp_path / "survey", len(STARS))
    model, configuration = load("mini"), Configuration.parse("lora4")
    keys = jax.random.split(jax.random.key(0), 2)
    about = {"configuration": "lora4", "target": "stars", "label": "fe_h", "seeds": 2, "sigma": 0.1}
    save_adapter(
        tmp_path / "runs/mine/adapters/spectra/lora4",
        config={**about, "preparation": None},
        arrays=jax.tree.map(np.asarray, initial_leaves(model.config, configuration)(keys, model.variables)),
        base=model.digest,
    )
    return tmp_path


def environment():
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}


def shell(code, place):
    subprocess.run(["bash", "-ec", code], cwd=place, env=environment(), check=True, timeout=600)


@contextmanager
def running(code, place):
    """Run a command in the background, in a session that ends with the block."""
    words = ["bash", "-ec", code]
    process = subprocess.Popen(words, cwd=place, env=environment(), start_new_session=True)
    try:
        yield
        assert process.poll() is None
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=60)


def is_whole(place, name="predicted.parquet"):
    frame = pandas.read_parquet(place / name)
    return frame["id"].tolist() == STARS and bool(np.isfinite(frame["fe_h"]).all())


def test_one_machine_and_the_readers_of_a_dataset(place):
    (code,) = blocks("sh", "--dask local:4")
    shell(replaced(code, {"local:4": "local:2"}), place)
    assert is_whole(place)
    assert str(Table.read(place / "predicted.parquet")["fe_h"].unit) == "dex"
    vectors = pandas.read_parquet(place / "vectors.parquet")
    assert vectors["id"].tolist() == STARS
    assert [path.name for path in (place / "vectors.parquet").iterdir()] == ["part-00000.parquet"]
    (code,) = blocks("python", "dask.dataframe")
    check = 'assert lazy.compute()["id"].tolist() == frame["id"].tolist() != []\n'
    words = [sys.executable, "-c", replaced(code, {"predicted.parquet": "vectors.parquet"}) + check]
    subprocess.run(words, cwd=place, env=environment(), check=True, timeout=600)


def test_several_hosts(place):
    host, port = free_address().split(":")
    here = {"host1": host, "8786": port}
    (scheduler,), (worker,) = blocks("sh", "dask scheduler"), blocks("sh", "dask worker")
    (command,) = blocks("sh", "--dask tcp://host1")
    command, worker = (replaced(code, here) for code in (command, worker))
    scheduler = replaced(scheduler, {"8786": f"{port} --host {host}"})
    worker = replaced(worker, {"--nworkers 16": "--nworkers 2"})
    with running(scheduler, place), running(worker, place):
        shell(command, place)
    assert is_whole(place)


def test_slurm(place):
    (code,) = blocks("python", "SLURMCluster")
    local = {
        "dask_jobqueue import": "dask_jobqueue.local import LocalCluster as",
        "cores=16": "cores=1",
        "processes=16": "processes=1",
        "64GB": "4GB",
        "jobs=4": "jobs=2",
    }
    (place / "script.py").write_text(replaced(code, local))
    shell(f"{sys.executable} script.py", place)
    assert is_whole(place)
