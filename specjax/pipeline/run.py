"""The run: files in chunks, one part per chunk, and one output of all parts.

In one process, workers read and preprocess; the process computes one chunk while they are busy with the next
ones, and writes its rows as a part. On a cluster, each worker does all of this. A part is complete or absent,
so that the same run continues where it was stopped, in either way.
"""

from collections import Counter, deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path
from zipfile import BadZipFile

from specjax.atomic import remove_folder
from specjax.errors import DataError
from specjax.flags import Flag
from specjax.pipeline.cluster import compute_on_cluster
from specjax.pipeline.output import write_output
from specjax.pipeline.parquet import check_dataset, write_dataset
from specjax.pipeline.parts import Columns, read_columns, read_refused
from specjax.pipeline.progress import Progress, spectra_in
from specjax.pipeline.work import Work, read_chunk, record_of, write_chunk
from specjax.prepare.assemble import write_report
from specjax.prepare.chunks import OnGrid
from specjax.prepare.plan import Plan, make_plan, report_medium, report_path
from specjax.prepare.pool import core_count, run_jobs
from specjax.prepare.resume import begin_or_resume, parts_folder, unfinished
from specjax.progress import Say, silent
from specjax.surveys import prepared

_CHUNKS_AT_ONCE = 2  # which are computed; more of them are read and preprocessed by the workers


def run(
    work: Work,
    sources: Sequence[Path],
    out: Path,
    *,
    workers: int | None = None,
    dask: str | None = None,
    partitioned: bool = False,
    dry_run: bool = False,
    say: Say = silent,
    look: Callable[[Sequence[Path]], object] | None = None,
) -> Columns:
    """Run all spectra of the sources through the work, and write one file or one folder.

    Args:
        work: what is done.
        sources: files, folders, patterns and lists, see `prepare.plan.given_paths`.
        out: the file or folder to write, of a format that `output.check_format` accepts.
        workers: number of processes that read and preprocess, by default the number of cores.
        dask: the cluster that computes, see `cluster.check_cluster`, instead of this process.
        partitioned: write a folder of Parquet files, with one of them in memory at a time.
        dry_run: only say what would be done.
        say: receives lines of progress.
        look: is called with the parts that have rows, before they are removed, to draw some of them.

    Returns:
        The columns (n,) of the file, in the order of the sources, without the wide ones; none if
        `partitioned` or `dry_run`.

    Raises:
        ConfigError: a prepared file was prepared otherwise, or an unfinished run with other files or options
            exists.
        DataError: there are no files, or none is readable.
        SpecjaxError: worker processes died, the cluster cannot do the work, or other files are in the folder.
    """
    plan = make_plan(sources, work.options, out=out, split_prepared=True)
    _check_prepared(plan, work)
    folder, record = parts_folder(out.absolute()), record_of(work, plan.stamps)
    parts = [folder / f"{number:06d}.npz" for number in range(len(plan.chunks))]
    todo = [number for number, path in enumerate(parts) if not path.exists()]
    if dry_run:
        _describe(plan, len(parts) - len(todo), unfinished(folder, record), out, say)
        return {}
    report_medium((source for chunk in plan.chunks for source in chunk), work.options, say)
    if partitioned:
        check_dataset(out)
    begin_or_resume(folder, record)
    if len(todo) < len(parts):
        say(f"resuming: {len(parts) - len(todo)} of {len(parts)} chunks are finished")
    progress = Progress(plan, todo, say)
    if dask is None or not todo:
        finished = _compute_here(work, plan, todo, parts, workers or core_count())
    else:
        finished = compute_on_cluster(work, plan, todo, parts, dask=dask, say=say)
    try:
        with closing(finished):
            for number, count in finished:
                progress(number, count)
    except KeyboardInterrupt:
        finished_parts = sum(path.exists() for path in parts)
        say(f"{finished_parts} of {len(parts)} chunks are finished: run the same command again to resume")
        raise
    return _finish(work, plan, parts, out, partitioned, say, look)


def _check_prepared(plan: Plan, work: Work) -> None:
    """Check the preparation of each prepared file before anything is computed."""
    for path in dict.fromkeys(source.path for chunk in plan.chunks for source in chunk if source.prepared):
        try:
            none = prepared.read(path, rows=(0, 0))  # any row may be damaged
        except DataError:  # its chunks are refused
            continue
        work.check(none)


def _compute_here(
    work: Work, plan: Plan, todo: Sequence[int], parts: Sequence[Path], workers: int
) -> Generator[tuple[int, int]]:
    """Compute chunks in this process; yield (number, number of rows) of each as it finishes.

    Two at a time, so that reading, checking and filling one of them takes no time from the device, which is
    busy with the other. The first is alone, because it compiles what all use.
    """

    def compute(number: int, chunk: Callable[[], OnGrid]) -> tuple[int, int]:
        return number, write_chunk(work, chunk(), parts[number])

    with closing(_on_grid(plan, todo, workers)) as chunks, ThreadPoolExecutor(_CHUNKS_AT_ONCE) as threads:
        running: deque[Future[tuple[int, int]]] = deque()
        most = 1
        try:
            for number, chunk in chunks:
                running.append(threads.submit(compute, number, chunk))
                if len(running) == most:
                    yield running.popleft().result()
                    most = _CHUNKS_AT_ONCE
            while running:
                yield running.popleft().result()
        finally:
            threads.shutdown(cancel_futures=True)


def _on_grid(plan: Plan, todo: Sequence[int], workers: int) -> Generator[tuple[int, Callable[[], OnGrid]]]:
    """Yield functions that return chunks of spectra on the LAMOST grid; prepared ones need no worker."""
    jobs = {}
    for number in todo:
        if plan.chunks[number][0].prepared:
            yield number, partial(read_chunk, plan.chunks[number], plan.options)
        else:
            jobs[number] = (plan.chunks[number], plan.options)
    for number, chunk in run_jobs(read_chunk, jobs, workers, ahead=workers, finish=False):
        yield number, partial(OnGrid, *chunk)


def _finish(
    work: Work,
    plan: Plan,
    parts: Sequence[Path],
    out: Path,
    partitioned: bool,
    say: Say,
    look: Callable[[Sequence[Path]], object] | None,
) -> Columns:
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
        remove_folder(folder)
        several = f"none of {plan.file_count} files could be used (see {report}); the first: {refused[0][1]}"
        raise DataError(refused[0][1] if plan.file_count == 1 else several)
    say(f"writing {out}")
    if partitioned:
        columns, flags = {}, write_dataset(out, full, work.wide, work.meta, work.shared)
    else:
        columns = write_output(out, full, wide=work.wide, shared=work.shared, meta=work.meta)
        flags = Counter(columns["flag"].tolist())
    if look is not None:
        look(full)
    remove_folder(folder)
    for flag, count in flags.items():
        if flag != Flag.GOOD:
            say(f"{count} of {flags.total()} spectra are flagged {flag!r}")
    if refused:
        say(f"{len(refused)} refused and left out: see {report}")
    return columns


def _describe(plan: Plan, finished: int, differs: str, out: Path, say: Say) -> None:
    """Say in a few lines what a run would do."""
    kinds = sorted(Counter(_kinds(plan).values()).items())
    rows = [spectra_in(plan, number) for number in range(len(plan.chunks))]
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
