"""Predict many simulated spectra in one process and on Dask workers: rates, and runs that are killed twice.

    python -m benchmarks.many_spectra --n 100000 --out runs/many [--workers 2] [--repeat 1] [--no-kill]

Simulates DESI spectra in files of 1,024, each of which is a chunk. Then `specjax predict` predicts all of
them with the model as it is, in one process with all cores and with `--dask local:N`, in turn. The printed
rates include everything from the start of Python to the written table. Unless `--no-kill` is given, both are
run once more and killed (SIGKILL) after a third and after two thirds of the chunks. The output must then be
the file of the uninterrupted run, and no finished chunk may be computed again; otherwise the program fails.
"""

import os
import signal
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import psutil
import tyro
from tyro.conf import arg

from specjax.prepare.resume import parts_folder
from specjax.progress import say
from specjax.simulate.instrument import Instrument
from specjax.simulate.survey import simulate_survey

PER_FILE = 1024
"""Spectra per file; two files are more than the 32 MB of a chunk."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What is run."""

    n: int = 100_000
    """number of spectra"""
    out: Annotated[Path, arg(aliases=("-o",))] = Path("runs/many")
    """folder of the spectra, which are kept for later calls with the same number, and of the tables"""
    workers: int = 2
    """number of Dask workers"""
    repeat: int = 1
    """number of uninterrupted runs of either kind"""
    kill: bool = True
    """also make the runs that are killed"""


def main(options: Options) -> None:
    """Run the comparison and print a table."""
    folder = options.out / f"spectra-{options.n}"
    _simulate(folder, options.n)
    kinds = {"one process": [], "Dask": ["--dask", f"local:{options.workers}"]}
    seconds: dict[str, list[float]] = {name: [] for name in kinds}
    outs = {name: options.out / f"{name.replace(' ', '-')}.parquet" for name in kinds}
    for _ in range(options.repeat):
        for name, words in kinds.items():
            start = time.monotonic()
            with _predict(folder, outs[name], words) as process:
                _must(process.wait() == 0, f"{name}: exit status {process.returncode}")
            seconds[name].append(time.monotonic() - start)
            say(f"{name}: {options.n / seconds[name][-1]:.0f} spectra/s")
    expected = outs["one process"].read_bytes()
    _must(outs["Dask"].read_bytes() == expected, "the table of the Dask workers differs")
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    for name, median in medians.items():
        print(f"{name:12} {median:8.1f} s {options.n / median:8.0f} spectra/s")
    ratio = medians["one process"] / medians["Dask"]
    print(f"rate of {options.workers} Dask workers / one process: {ratio:.2f}")
    for name, words in kinds.items() if options.kill else ():
        out = options.out / f"killed-{outs[name].name}"
        _kill_twice(folder, out, words)
        _must(out.read_bytes() == expected, f"{name}: the table of the killed run differs")
        print(f"{name}: killed twice, the same table")


def _simulate(folder: Path, n: int) -> None:
    for number, start in enumerate(range(0, n, PER_FILE)):
        path = folder / f"{number:04d}.h5"
        if not path.exists():
            count = min(PER_FILE, n - start)
            simulate_survey(path, instrument=Instrument.get("desi"), n=count, seed=number)


def _predict(folder: Path, out: Path, words: list[str]) -> "subprocess.Popen[bytes]":
    """Start the command in a session of its own."""
    command = [sys.executable, "-m", "specjax", "predict", str(folder / "*.h5"), "-o", str(out), *words]
    return subprocess.Popen(command, start_new_session=True)


def _kill_twice(folder: Path, out: Path, words: list[str]) -> None:
    """Run the command, kill it after a third and two thirds of the chunks, and let the third run finish."""
    total = len(list(folder.glob("*.h5")))
    parts = parts_folder(out)
    kept: dict[Path, int] = {}
    for wanted in (-(-total // 3), -(-2 * total // 3)):
        with _predict(folder, out, words) as process:
            while process.poll() is None and len(_finished(parts)) < wanted:
                time.sleep(0.05)
            _must(process.returncode is None, "the run ended before it could be killed")
            os.kill(process.pid, signal.SIGKILL)
        _wait_for_group(process.pid)
        now = _finished(parts)
        _must(now.items() >= kept.items(), "a finished chunk was computed again")
        kept = now
        say(f"killed with {len(kept)} of {total} chunks")
    with _predict(folder, out, words) as process:
        while process.poll() is None:
            now = _finished(parts)
            # At the end the folder is removed, perhaps between two looks at it.
            again = [path for path, changed in now.items() if kept.get(path, changed) != changed]
            _must(not again, "a finished chunk was computed again")
            time.sleep(0.05)
    _must(process.returncode == 0, f"exit status {process.returncode}")


def _finished(parts: Path) -> dict[Path, int]:
    """Return the time of writing of every finished part."""
    found = {}
    for path in parts.glob("0*.npz"):
        try:
            found[path] = path.stat().st_mtime_ns
        except FileNotFoundError:  # the run has just ended
            continue
    return found


def _wait_for_group(group: int) -> None:
    """Wait until the workers of a killed process have ended, too, as they must on their own."""
    patience = time.monotonic() + 60
    while any(_runs_in(process, group) for process in psutil.process_iter()):
        _must(time.monotonic() < patience, "workers of a killed run go on")
        time.sleep(0.1)


def _runs_in(process: psutil.Process, group: int) -> bool:
    try:
        return os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE
    except (ProcessLookupError, psutil.NoSuchProcess):
        return False


def _must(holds: bool, otherwise: str) -> None:
    if not holds:
        sys.exit(f"failed: {otherwise}")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
