"""Work that Dask workers make in tests: a prediction that leaves a trace and stops at a given star."""

import os
import signal
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

from specjax.pipeline.predict import _predict_work
from specjax.pipeline.work import raw_options

OPTIONS = raw_options(None, None, None)


def traced(model, adapter, folder, star="", then=""):
    """Make work that notes every computed chunk in `folder`, and stops at a star while `folder`/trap exists.

    Args:
        model: the model folder.
        adapter: the adapter folder.
        folder: where the notes go.
        star: id of the star whose chunk is stopped.
        then: "die" ends the process each time, "die once" the first time; "wait" waits for the trap to go.
    """
    work, trap = _predict_work(model, [adapter], None, "float32", OPTIONS), folder / "trap"

    def compute(rows):
        if star in rows.id.tolist() and trap.exists():
            if then == "die once":
                trap.unlink()
            patience = time.monotonic() + 60  # a test that fails does not wait forever
            while then == "wait" and trap.exists() and time.monotonic() < patience:
                time.sleep(0.05)
            if then != "wait":
                time.sleep(0.5)  # a process that dies while its nanny starts it is not started again
                os.kill(os.getpid(), signal.SIGKILL)
        columns = work.compute(rows)
        with (folder / "trace").open("a") as file:  # one short write, so that lines of processes do not mix
            file.write(f"{rows.id[0]} {os.getpid()}\n")
        return columns

    again = partial(traced, model, adapter, Path(folder).absolute(), star, then)
    return replace(work, compute=compute, again=again)


def trace(folder):
    """Return (first star of the chunk, process) of every computed chunk, in order."""
    path = folder / "trace"
    lines = path.read_text().splitlines() if path.exists() else []
    return [tuple(line.rsplit(" ", 1)) for line in lines]
