"""Worker processes: how far they run ahead, and how they end."""

import os
import time

import numpy as np
import pytest

from specjax.errors import SpecjaxError
from specjax.prepare import Options
from specjax.prepare.chunks import put_on_grid
from specjax.prepare.plan import Source
from specjax.prepare.pool import run_jobs
from specjax.preprocess import to_lamost
from specjax.surveys import read
from tests.prepare.stars import GRID, write_star


def test_jobs_run_ahead_of_the_consumer_within_the_limit(tmp_path):
    jobs = {number: (tmp_path / str(number),) for number in range(12)}
    results = run_jobs(os.mkdir, jobs, workers=2, ahead=3)
    first, _ = next(results)
    deadline = time.monotonic() + 30
    while len(list(tmp_path.iterdir())) < 5 and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.2)
    assert len(list(tmp_path.iterdir())) == 5  # although only one was asked for
    assert sorted([first, *(number for number, _ in results)]) == list(range(12))


def test_running_jobs_are_ended_at_once_on_request():
    results = run_jobs(time.sleep, {0: (0,), 1: (100,), 2: (100,)}, workers=2, ahead=1, finish=False)
    next(results)
    started = time.monotonic()
    results.close()
    assert time.monotonic() - started < 20


def test_the_death_of_a_worker_is_one_error():
    with pytest.raises(SpecjaxError, match="fewer workers"):
        list(run_jobs(os._exit, {0: (3,), 1: (3,)}, workers=2))


def test_rows_on_the_grid_are_in_the_order_of_their_sources(tmp_path):
    """Spectra on one grid are prepared together, although others lie between them."""
    grids = [GRID, GRID[10:], GRID, GRID[10:]]
    files = [write_star(tmp_path, number, grid) for number, grid in enumerate(grids)]
    files.append(write_star(tmp_path, 4, ivar=None))
    (tmp_path / "bad.npz").write_text("no spectra")
    sources = [Source(path=path, size=1) for path in (files[3], tmp_path / "bad.npz", *files[:3], files[4])]
    spectra, refused = put_on_grid(sources, Options())
    assert spectra.id.tolist() == ["star 3", "star 0", "star 1", "star 2", "star 4"]
    for row, number in enumerate((3, 0, 1, 2)):
        alone = to_lamost(read(files[number]))
        np.testing.assert_allclose(spectra.flux[row], alone.flux[0], rtol=1e-6)  # float32
        np.testing.assert_allclose(spectra.ivar[row], alone.ivar[0], rtol=1e-6)
        np.testing.assert_array_equal(spectra.mask[row], alone.mask[0])
    assert spectra.flux.dtype == np.float32
    assert [name for name, _ in refused] == [str(tmp_path / "bad.npz")]
    assert put_on_grid(sources[1:2], Options()).spectra is None
    assert (spectra.ivar[4][~spectra.mask[4]] == np.float32(1e30)).all()


def test_a_single_job_starts_no_worker():
    assert list(run_jobs(os.getpid, {2: ()}, workers=2)) == [(2, os.getpid())]
