"""Runs on Dask workers: the rows of one process, whoever is killed on the way."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from specjax.cli import main
from specjax.errors import ConfigError, SpecjaxError
from specjax.pipeline import cluster as cluster_module
from specjax.pipeline import predict_survey, work
from specjax.pipeline.predict import _predict_work
from specjax.pipeline.run import run
from specjax.prepare import plan
from specjax.prepare.plan import Source
from tests.pipeline.recipes import OPTIONS, trace, traced
from tests.prepare.stars import write_stars
from tests.processes import ROOT, free_address

dask = pytest.importorskip("dask")
distributed = pytest.importorskip("distributed")
pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch):
    monkeypatch.setattr(plan, "_FILES_AT_ONCE", 2)
    monkeypatch.setattr(plan, "_ROWS_AT_ONCE", 4)
    monkeypatch.setattr(plan, "_BYTES_AT_ONCE", 100_000)


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """Address of a cluster of two processes, which give a chunk up when it has killed two workers."""
    settings = {
        "distributed.scheduler.allowed-failures": 1,
        "distributed.scheduler.worker-saturation": 1.0,
    }
    environment = {
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # as this process does, so that results are equal
        "SPECJAX_CACHE": str(tmp_path_factory.mktemp("cache")),
    }
    with (
        dask.config.set(settings),
        distributed.LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            dashboard_address="127.0.0.1:0",
            env=environment,
            silence_logs="CRITICAL",
        ) as cluster,
    ):
        yield cluster.scheduler_address


def same(found, expected):
    assert list(found) == list(expected)
    for name, column in expected.items():
        np.testing.assert_array_equal(found[name], column)


def trap(folder):
    folder.mkdir(exist_ok=True)
    (folder / "trap").touch()
    return folder


def ids(found):
    return found["id"].tolist()


def test_the_files_are_those_of_one_process(files, tmp_path, address):
    for kind in ("one", "dask"):
        (tmp_path / kind).mkdir()
        options = {"workers": 1} if kind == "one" else {"dask": address}
        options |= {"model": files.model, "spectra": [files.raw, files.arrays, files.prepared]}
        predict_survey(**options, adapter=files.adapter, out=tmp_path / kind / "labels.fits")
    one, other = (
        {path.relative_to(tmp_path / kind): path for path in sorted((tmp_path / kind).rglob("*"))}
        for kind in ("one", "dask")
    )
    assert list(one) == list(other)
    assert {path.name for path in one} >= {"labels.fits", "labels.report.ecsv"}
    for name, path in one.items():
        assert path.read_bytes() == other[name].read_bytes(), name


def test_a_killed_worker_loses_and_repeats_nothing(files, tmp_path, address):
    folder, notes = write_stars(tmp_path / "raw", 10), trap(tmp_path / "notes")
    traps = traced(files.model, files.adapter, notes, "star 5", "die once")
    found = run(traps, [folder], tmp_path / "labels.fits", dask=address)
    assert not (notes / "trap").exists()
    assert sorted(star for star, _ in trace(notes)) == [f"star {number}" for number in range(0, 10, 2)]
    assert str(os.getpid()) not in {process for _, process in trace(notes)}
    plain = _predict_work(files.model, [files.adapter], None, "float32", OPTIONS)
    same(found, run(plain, [folder], tmp_path / "anew.fits", workers=1))
    assert not list(tmp_path.glob(".*"))


@pytest.mark.slow  # both workers start anew
def test_a_chunk_that_kills_every_worker_is_named_and_the_others_are_kept(files, tmp_path, address):
    folder, notes = write_stars(tmp_path / "raw", 8), trap(tmp_path / "notes")
    traps = traced(files.model, files.adapter, notes, "star 3", "die")
    with pytest.raises(SpecjaxError, match=r"workers died of \S*/002\.npz, \S*/003\.npz, perhaps") as caught:
        run(traps, [folder], tmp_path / "labels.fits", dask=address)
    assert "\n" not in str(caught.value)
    assert sorted(star for star, _ in trace(notes)) == ["star 0", "star 4", "star 6"]
    assert not (tmp_path / "labels.fits").exists()
    (notes / "trap").unlink()
    said = []
    found = run(traps, [folder], tmp_path / "labels.fits", workers=1, say=said.append)
    assert said[0] == "resuming: 3 of 4 chunks are finished"
    assert trace(notes)[3:] == [("star 2", str(os.getpid()))]
    assert ids(found) == [f"star {number}" for number in range(8)]


KILLED = """
import sys
from pathlib import Path
from specjax.pipeline import run as run_module
from specjax.prepare import plan
from tests.pipeline.recipes import traced

plan._FILES_AT_ONCE = 2
model, adapter, notes, folder, out, address = sys.argv[1:]
run_module.Progress.__call__ = lambda *given: print("part", flush=True)
work = traced(Path(model), Path(adapter), Path(notes), "star 3", "wait")
run_module.run(work, [folder], Path(out), dask=address)
"""


def test_a_killed_client_is_resumed(files, tmp_path, address):
    # More than two chunks per worker, so that none waits behind the one that is stopped.
    folder, notes, out = write_stars(tmp_path / "raw", 12), trap(tmp_path / "notes"), tmp_path / "labels.fits"
    words = [sys.executable, "-c", KILLED, files.model, files.adapter, notes, folder, out, address]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    with subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, text=True) as client:
        assert [client.stdout.readline() for _ in range(5)] == 5 * ["part\n"]
        client.send_signal(signal.SIGKILL)
    assert len(list((tmp_path / ".labels.fits.parts").glob("0*.npz"))) == 5
    (notes / "trap").unlink()  # the worker that waits there goes on
    work = traced(files.model, files.adapter, notes)
    found = run(work, [folder], out, dask=address)
    stars = [star for star, _ in trace(notes)]
    assert sorted(set(stars)) == sorted(f"star {number}" for number in range(0, 12, 2))
    assert all(stars.count(star) == 1 for star in stars if star != "star 2")
    assert ids(found) == [f"star {number}" for number in range(12)]


INTERRUPTED = """
import sys
from pathlib import Path
from specjax import cli
from specjax.pipeline.run import run
from specjax.prepare import plan
from specjax.progress import say
from tests.pipeline.recipes import traced

plan._FILES_AT_ONCE = 2
model, adapter, notes, folder, out = sys.argv[1:]
if __name__ == "__main__":
    work = traced(Path(model), Path(adapter), Path(notes), "star 3", "wait")
    cli.run(lambda: run(work, [folder], Path(out), dask="local:2", say=say))
"""


@pytest.mark.slow
def test_an_interrupt_ends_a_local_cluster_and_says_how_to_resume(files, tmp_path):
    folder = write_stars(tmp_path / "raw", 12, wavelength_medium="vacuum")
    notes, out = trap(tmp_path / "notes"), tmp_path / "labels.fits"
    (tmp_path / "program.py").write_text(INTERRUPTED)
    words = [sys.executable, tmp_path / "program.py", files.model, files.adapter, notes, folder, out]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    pipes = {"stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    with subprocess.Popen(words, env=environment, **pipes) as client:
        while client.poll() is None and len(trace(notes)) < 5:
            time.sleep(0.1)
        os.killpg(client.pid, signal.SIGINT)  # a terminal sends it to the workers, too
        said = client.stderr.read().splitlines()
    assert client.returncode == 130
    assert said[0] == "2 Dask workers"
    assert said[-2:] == [
        "5 of 6 chunks are finished: run the same command again to resume",
        "specjax: interrupted",
    ]
    assert all("spectra/s" in line for line in said[1:-2]), said
    (notes / "trap").unlink()
    time.sleep(1)  # a worker that still waited would go on now
    assert len(trace(notes)) == 5


def test_a_cluster_that_has_lost_its_workers_is_an_error(files, tmp_path):
    plain = _predict_work(files.model, [files.adapter], None, "float32", OPTIONS)
    with (
        dask.config.set({"distributed.scheduler.no-workers-timeout": "100ms"}),
        distributed.LocalCluster(n_workers=0, dashboard_address="127.0.0.1:0") as cluster,
        pytest.raises(SpecjaxError, match="all Dask workers have died"),
    ):
        run(plain, [files.raw], tmp_path / "labels.fits", dask=cluster.scheduler_address)


def test_parts_that_do_not_become_visible_are_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(cluster_module, "_VISIBLE", 0.3)
    (tmp_path / "0.npz").touch()
    cluster_module._wait_until_seen([tmp_path / "0.npz"])
    with pytest.raises(SpecjaxError, match=r"1 finished parts are not in .* on this host"):
        cluster_module._wait_until_seen([tmp_path / "0.npz", tmp_path / "1.npz"])


def test_workers_with_another_model_or_version_are_refused(files, tmp_path, address, monkeypatch):
    plain = _predict_work(files.model, [files.adapter], None, "float32", OPTIONS)
    other = replace(plain, again=partial(_predict_work, files.model, [], None, "float32", OPTIONS))
    with pytest.raises(SpecjaxError, match=r"the worker tcp:\S+ cannot take part: its adapter is None, not"):
        run(other, [files.raw], tmp_path / "labels.fits", dask=address)
    missing = replace(plain, again=partial(_predict_work, tmp_path / "none", [], None, "float32", OPTIONS))
    with pytest.raises(SpecjaxError, match=r"cannot take part: .*none"):
        run(missing, [files.raw], tmp_path / "labels.fits", dask=address)
    monkeypatch.setattr(work, "__version__", "9.9")
    with pytest.raises(SpecjaxError, match=r"its specjax is \d\S+, not 9\.9"):
        run(plain, [files.raw], tmp_path / "other.fits", dask=address)
    assert not list(tmp_path.glob("*.fits"))


def plugin_of(files, folder, monkeypatch):
    """Return a plugin as a worker has it, in this process."""
    from specjax.pipeline.worker import ModelPlugin

    monkeypatch.setenv("NPROC", "1")
    plain = _predict_work(files.model, [files.adapter], None, "float32", OPTIONS)
    plugin = ModelPlugin(plain.again, work.record_of(plain), folder, local=False)
    worker = SimpleNamespace(address="tcp://there:1", state=SimpleNamespace(nthreads=1))
    asyncio.run(plugin.setup(worker))
    return plugin


def test_a_worker_computes_no_finished_part_and_no_file_that_it_sees_otherwise(files, tmp_path, monkeypatch):
    from specjax.pipeline.worker import Chunk

    (tmp_path / "plan.json").write_text("{}")
    plugin = plugin_of(files, tmp_path, monkeypatch)
    path, part = files.raw / "000.npz", tmp_path / "0.npz"
    absent = [Source(tmp_path / "none.npz", 10)]
    for sources in ([Source(path, path.stat().st_size - 1)], absent):
        with pytest.raises(SpecjaxError, match=r"tcp://there:1 does not see \S+\.npz as the client does"):
            plugin.compute(Chunk("", sources, part))
    assert not part.exists()
    assert plugin.compute(Chunk("", [Source(path, path.stat().st_size)], part)) == 1
    assert plugin.compute(Chunk("", absent, part)) == 1


def test_a_worker_without_the_folder_of_the_run_is_refused(files, tmp_path, monkeypatch):
    from specjax.pipeline.worker import Chunk

    plugin = plugin_of(files, tmp_path / "elsewhere", monkeypatch)
    with pytest.raises(SpecjaxError, match=r"does not see \S+/elsewhere; .* must lie on a file system"):
        plugin.compute(Chunk("", [], tmp_path / "elsewhere" / "0.npz"))
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("given", ["local", "local:0", "local:two", "host:8786", "none.json"])
def test_what_is_no_cluster_is_refused_before_anything_is_read(tmp_path, given, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=rf"--dask takes local:N .*, not {given}"):
        predict_survey(model="none", spectra=[Path("none")], out=Path("labels.fits"), dask=given)


def test_a_wrong_address_is_one_line_and_leaves_parts(files, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cluster_module, "_TIMEOUT", "300ms")
    wrong = f"tcp://{free_address()}"
    words = [str(files.raw), "--model", str(files.model), "-o", str(tmp_path / "v.h5"), "--dask", wrong]
    assert main(["embed", *words]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"specjax: error: no Dask scheduler answers at {wrong}: ")
    assert main(["embed", *words, "--workers", "2"]) == 1
    assert "--workers or --dask" in capsys.readouterr().err
    assert main(["embed", *words[:-2], "--workers", "1"]) == 0


def test_without_dask_its_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ConfigError, match=r"pip install 'specjax\[dask\]'"):
        predict_survey(model="none", spectra=[], out=tmp_path / "labels.fits", dask="local:2")


@pytest.mark.slow
def test_a_local_cluster(files, tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    words = ["embed", str(files.raw), "--model", str(files.model), "--partitioned", "-o"]
    assert main([*words, str(tmp_path / "dask.parquet"), "--dask", "local:2"]) == 0
    said = capfd.readouterr().err.splitlines()
    assert said[0] == "2 Dask workers"
    assert not [line for line in said if "Traceback" in line or " - " in line]
    assert main([*words, str(tmp_path / "one.parquet"), "--workers", "1"]) == 0
    (one,), (other,) = ((tmp_path / f"{name}.parquet").iterdir() for name in ("one", "dask"))
    assert one.read_bytes() == other.read_bytes()


@pytest.mark.slow
def test_workers_of_a_local_cluster_keep_freed_memory(monkeypatch):
    monkeypatch.delenv("MALLOC_TRIM_THRESHOLD_", raising=False)  # Dask leaves it behind after other clusters
    with (
        cluster_module._local_cluster(1) as workers,
        distributed.Client(workers, set_as_default=False) as client,
    ):
        (value,) = client.run(os.environ.get, "MALLOC_TRIM_THRESHOLD_").values()
        (threads,) = client.run(os.environ.get, "OMP_NUM_THREADS").values()
    assert value is None
    assert threads == "1"  # other variables of Dask are kept
