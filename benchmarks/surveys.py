"""Whole surveys: rates against the compiled core, and cost against numbers of spectra and of seeds."""

import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks import cold, names, processes, survey_files
from benchmarks.timing import OURS, Row
from specjax.foundation import load

KINDS = {"raw": names.RAW, "prepared": names.PREPARED}


def rate_rows(counts: tuple[int, ...], rounds: int) -> Iterator[Row]:
    """Compare `predict_survey` with the compiled core alone, in alternation in one warm process."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        adapter = survey_files.write_adapter(root / "adapter", load("mini"))
        for count in counts:
            raw, prepared = _files(root, count)
            arguments = [adapter, raw, prepared, count, rounds]
            command = [sys.executable, "-m", "benchmarks.survey_run", *arguments]
            done = processes.run(command, SPECJAX_CACHE=str(root / "cache"))
            yield from _compared(json.loads(done.out.splitlines()[-1]), count)
            _remove(raw, prepared)


def _compared(measured: dict[str, dict[str, list[float]]], count: int) -> Iterator[Row]:
    seconds, cpu = measured["seconds"], measured["cpu"]
    for kind in ("core", "raw", "prepared"):
        name = {"core": names.CORE, **KINDS}[kind]
        rates = [core / own for core, own in zip(seconds["core"], seconds[kind], strict=True)]
        yield Row(
            section="h",
            what=names.survey(name, count),
            count=count,
            unit="spectra",
            times={OURS: seconds[kind]},
            cpu={OURS: cpu[kind]},
            of_core=[] if kind == "core" else rates,
            panel="survey" if kind == "core" else "",
            curve=names.CORE if kind == "core" else "",
        )


def number_rows(counts: tuple[int, ...], repeats: int, few: int = 100_000) -> Iterator[Row]:
    """Run `specjax predict` on files of several sizes, from `few` spectra on only once."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        adapter = survey_files.write_adapter(root / "adapter", load("mini"))
        for count in counts:
            raw, prepared = _files(root, count)
            runs: dict[str, list[processes.Finished]] = {kind: [] for kind in KINDS}
            for _ in range(1 if count >= few else repeats):
                for kind, source in (("raw", raw), ("prepared", prepared)):
                    arguments = [source, "--adapter", adapter, "-o", root / "labels.fits"]
                    runs[kind].append(processes.specjax("predict", *arguments, cache=root / "cache"))
            for kind, done in runs.items():
                yield _measured("i", names.survey(KINDS[kind], count), count, "spectra", KINDS[kind], done)
            _remove(raw, prepared)


def seed_rows(seeds: tuple[int, ...], repeats: int) -> Iterator[Row]:
    """Run `specjax adapt` with several numbers of seeds, once to fill the cache and then for the times."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        cold.write_inputs(root, cold.LABELLED)
        inputs = ["--spectra", root / f"{cold.LABELLED}.npz", "--labels", root / "labels.csv"]
        for count in seeds:
            done = []
            for turn in range(repeats + 1):
                arguments = [*inputs, "--seeds", count, "--out", root / f"run-{count}-{turn}"]
                done.append(processes.specjax("adapt", *arguments, cache=root / "cache"))
            what = f"specjax adapt, {cold.LABELLED} spectra, mini, lora4, seeds: {count}"
            yield _measured("j", what, count, "seeds", "", done[1:], first=done[0].seconds, panel="adapt")


def _measured(
    section: str,
    what: str,
    count: int,
    unit: str,
    curve: str,
    done: list[processes.Finished],
    *,
    first: float | None = None,
    panel: str = "survey",
) -> Row:
    """Make a row of processes that did the same."""
    memory = max(one.memory for one in done)
    return Row(
        section=section,
        what=what,
        count=count,
        unit=unit,
        times={OURS: [one.seconds for one in done]},
        cpu={OURS: [one.cpu for one in done]},
        first={} if first is None else {OURS: first},
        memory={OURS: memory} if memory else {},
        panel=panel,
        curve=curve,
    )


def _files(root: Path, count: int) -> tuple[Path, Path]:
    raw = survey_files.write_raw(root / f"raw-{count}", count)
    return raw, survey_files.write_prepared(raw, root / f"prepared-{count}.h5", count)


def _remove(raw: Path, prepared: Path) -> None:
    for path in (*raw.iterdir(), prepared):
        path.unlink()
    raw.rmdir()
