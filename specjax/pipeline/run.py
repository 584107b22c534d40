"""The run: files in chunks through worker processes, the model in this process, and one part per chunk.

Workers read and preprocess; this process computes one chunk while they are busy with the next ones, and
writes its rows as a part. A part is complete or absent, so that the same run continues where it was stopped.
"""

import shutil
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from specjax._version import __version__
from specjax.errors import DataError
from specjax.flags import Flag
from specjax.foundation import Foundation
from specjax.foundation.inputs import pixel_count
from specjax.pipeline.output import write_output
from specjax.pipeline.parts import Columns, read_columns, read_refused, write_part
from specjax.prepare.assemble import write_report
from specjax.prepare.chunks import OnGrid, put_on_grid
from specjax.prepare.parts import stack_columns
from specjax.prepare.plan import Options, Plan, Source, make_plan, report_path
from specjax.prepare.pool import core_count, run_jobs
from specjax.prepare.resume import begin_or_resume, parts_folder, unfinished
from specjax.progress import Pace, Say, silent
from specjax.spectra import Spectra
from specjax.surveys import prepared
from specjax.typing import Float32Array

VERSION = 1
"""Version of the parts; those of another version are not resumed."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """What is done with every chunk of spectra.

    Attributes:
        compute: maps n spectra on the LAMOST grid to columns (n, ...), among them id and flag.
        check: raises ConfigError if prepared spectra do not have the preparation that is wanted.
        options: options of reading and preprocessing raw spectra.
        record: everything else that the columns depend on, for JSON: digests and options.
        meta: metadata of the output.
        wide: names of columns of vectors, which are never in memory as a whole; only some formats take them.
    """

    compute: Callable[[Spectra], Columns]
    check: Callable[[Spectra], object]
    options: Options
    record: Mapping[str, Any]
    meta: Mapping[str, Any]
    wide: tuple[str, ...] = ()


def run(
    work: Work,
    sources: Sequence[Path],
    out: Path,
    *,
    workers: int | None = None,
    dry_run: bool = False,
    say: Say = silent,
) -> Columns:
    """Run all spectra of the sources through the work, and write one file.

    Args:
        work: what is done.
        sources: files, folders, patterns and lists, see `prepare.plan.given_paths`.
        out: the file to write, of a format that `output.check_format` accepts.
        workers: number of processes that read and preprocess, by default the number of cores.
        dry_run: only say what would be done.
        say: receives lines of progress.

    Returns:
        The columns (n,) of the file, in the order of the sources, without the wide ones; none if `dry_run`.

    Raises:
        ConfigError: a prepared file was prepared otherwise, or an unfinished run with other files or options
            exists.
        DataError: there are no files, or none is readable.
        SpecjaxError: a worker process died.
    """
    plan = make_plan(sources, work.options, out=out, split_prepared=True)
    _check_prepared(plan, work)
    folder, record = parts_folder(out), _record(work, plan)
    parts = [folder / f"{number:06d}.npz" for number in range(len(plan.chunks))]
    todo = [number for number, path in enumerate(parts) if not path.exists()]
    if dry_run:
        _describe(plan, len(parts) - len(todo), unfinished(folder, record), out, say)
        return {}
    begin_or_resume(folder, record)
    if len(todo) < len(parts):
        say(f"resuming: {len(parts) - len(todo)} of {len(parts)} chunks are finished")
    progress = _Progress(plan, todo, say)
    with closing(_on_grid(plan, todo, workers or core_count())) as chunks:
        for number, (spectra, refused) in chunks:
            computed, more = ([], []) if spectra is None else _compute(work, spectra)
            write_part(parts[number], stack_columns(computed) if computed else {}, [*refused, *more])
            progress(number, sum(len(columns["id"]) for columns in computed))
    return _finish(work, plan, parts, out, say)


def raw_options(
    survey: str | None, wavelength_medium: str | None, wavelength_unit: str | None, fwhm: float | None = None
) -> Options:
    """Return the options for raw spectra; prepared ones are accepted as either method made them."""
    return Options(
        survey=survey,
        wavelength_medium=wavelength_medium,
        wavelength_unit=wavelength_unit,
        method=None,
        fwhm_from=fwhm,
    )


def about_model(foundation: Foundation, model: str | Path) -> dict[str, Any]:
    """Return the metadata of an output that a model made, `model` being what it was loaded from."""
    return {
        "specjax": __version__,
        "model": str(model),
        "digest": foundation.digest or "",
        "dtype": foundation.dtype,
    }


def one_spectrum(model: Foundation) -> Float32Array:
    """Return a featureless spectrum (1, pixels), to try out what a model can do before a run."""
    return np.ones((1, pixel_count(model.config, "lamost")), np.float32)


def _record(work: Work, plan: Plan) -> dict[str, Any]:
    options = {**work.record, **asdict(work.options)}
    return {"version": f"{__version__}/{VERSION}", "options": options, "stamps": plan.stamps}


def _check_prepared(plan: Plan, work: Work) -> None:
    """Check the preparation of each prepared file before anything is computed, by its first row."""
    for path in dict.fromkeys(source.path for chunk in plan.chunks for source in chunk if source.prepared):
        try:
            first = prepared.read(path, rows=(0, 1))
        except DataError:  # its chunks are refused
            continue
        work.check(first)


def _on_grid(plan: Plan, todo: Sequence[int], workers: int) -> Generator[tuple[int, OnGrid]]:
    """Yield chunks of spectra on the LAMOST grid; prepared ones need no worker."""
    jobs = {}
    for number in todo:
        first = plan.chunks[number][0]
        if first.prepared:  # it is the only source of its chunk
            yield number, _read_prepared(first)
        else:
            jobs[number] = (plan.chunks[number], plan.options)
    yield from run_jobs(put_on_grid, jobs, workers, ahead=workers, finish=False)


def _read_prepared(source: Source) -> OnGrid:
    try:
        spectra = prepared.read(source.path, rows=source.rows)
    except DataError as error:
        return OnGrid(None, [(str(source.path), str(error))])
    return OnGrid(spectra.with_meta(file=np.full(len(spectra), str(source.path))), [])


def _compute(work: Work, spectra: Spectra) -> tuple[list[Columns], list[tuple[str, str]]]:
    """Return the columns of all files, or of each one, and (file, reason) of those that the model refuses."""
    try:
        return [work.compute(spectra)], []
    except DataError as error:
        files = spectra.meta["file"]
        names = list(dict.fromkeys(files.tolist()))
        if len(names) == 1:
            return [], [(names[0], f"{len(spectra)} spectra from {spectra.id[0]}: {error}")]
    alone = [_compute(work, spectra[files == name]) for name in names]
    return [part for parts, _ in alone for part in parts], [row for _, rows in alone for row in rows]


def _finish(work: Work, plan: Plan, parts: Sequence[Path], out: Path, say: Say) -> Columns:
    """Write the output and the report, remove the parts, and say what needs attention."""
    folder, report = parts[0].parent, report_path(out)
    try:
        refused = [row for path in parts for row in read_refused(path)]
        full = [path for path in parts if read_columns(path, ["id"])]
    except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
        raise DataError(f"{folder} is damaged: remove it to start over ({error})") from None
    if refused or report.exists():  # a report of an earlier run would mislead
        write_report(report, [(file, "", "refused", reason) for file, reason in refused])
    if not full:
        shutil.rmtree(folder, ignore_errors=True)
        several = f"none of {plan.file_count} files could be used (see {report}); the first: {refused[0][1]}"
        raise DataError(refused[0][1] if plan.file_count == 1 else several)
    say(f"writing {out}")
    columns = write_output(out, full, wide=work.wide, meta=work.meta)
    shutil.rmtree(folder, ignore_errors=True)
    for flag, count in Counter(columns["flag"].tolist()).items():
        if flag != Flag.GOOD:
            say(f"{count} of {len(columns['id'])} spectra are flagged {flag!r}")
    if refused:
        say(f"{len(refused)} refused and left out: see {report}")
    return columns


def _describe(plan: Plan, finished: int, differs: str, out: Path, say: Say) -> None:
    """Say in a few lines what a run would do."""
    kinds = sorted(Counter(_kinds(plan).values()).items())
    rows = [_rows(plan, number) for number in range(len(plan.chunks))]
    known = f"{sum(filter(None, rows)):,}"
    some = f"{known} and those of files without a known number" if any(rows) else "unknown"
    say(f"files    {plan.file_count:,}: {', '.join(f'{count:,} {kind}' for kind, count in kinds)}")
    say(f"spectra  {known if all(rows) else some}")
    say(f"chunks   {len(rows):,}, of which {finished:,} are finished")
    if differs:
        say(f"resume   not possible, the unfinished run differs: {differs}")
    say(f"output   {out}{', which would be replaced' if out.exists() else ''}")


def _kinds(plan: Plan) -> dict[Path, str]:
    """Return what each file is, by its name and whether it is prepared."""
    kinds = {}
    for chunk in plan.chunks:
        for source in chunk:
            path = source.path
            suffixes = "".join(path.suffixes[-2:]) if path.suffix == ".gz" else path.suffix
            kind = "folders of a library" if path.is_dir() else f"{suffixes or 'without suffix'}"
            kinds[path] = f"prepared {kind}" if source.prepared else kind
    return kinds


def _rows(plan: Plan, number: int) -> int | None:
    """Return the number of spectra of a chunk, None if only its files know."""
    rows = [source.rows for source in plan.chunks[number]]
    return sum(last - first for first, last in filter(None, rows)) if all(rows) else None


class _Progress:
    """Progress of a run, in spectra and files, with an estimate of the time left from the bytes."""

    def __init__(self, plan: Plan, todo: Sequence[int], say: Say) -> None:
        self.plan, self.say, self.pace = plan, say, Pace()
        self.chunks, self.spectra, self.bytes = len(todo), 0, 0
        self.left = Counter(source.path for number in todo for source in plan.chunks[number])
        self.files, self.read = len(self.left), 0
        self.size = max(sum(source.size for number in todo for source in plan.chunks[number]), 1)
        rows = [_rows(plan, number) for number in todo]
        self.total = None if None in rows else sum(filter(None, rows))

    def __call__(self, number: int, count: int) -> None:
        """Count a finished chunk, and say how far the run is from time to time and at its end."""
        chunk = self.plan.chunks[number]
        for source in chunk:
            self.left[source.path] -= 1
            self.read += not self.left[source.path]
        self.chunks -= 1
        self.spectra += count
        self.bytes += sum(source.size for source in chunk)
        if self.chunks and not self.pace.due():
            return
        seconds = max(self.pace.elapsed, 1e-3)
        total = "" if self.total is None else f" of {self.total:,}"
        text = f"{self.spectra:,}{total} spectra, {self.read:,} of {self.files:,} files"
        text += f", {self.spectra / seconds:,.0f} spectra/s"
        if self.chunks:
            text += f", {_duration(seconds * (self.size / max(self.bytes, 1) - 1))} left"
        self.say(text)


def _duration(seconds: float) -> str:
    """Return a duration to about a tenth.

    >>> _duration(12.3), _duration(150), _duration(9000)
    ('12 s', '2.5 min', '2.5 h')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
