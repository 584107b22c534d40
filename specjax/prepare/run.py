"""Run the preparation: resume finished chunks, prepare the rest, assemble the file and report."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from specjax.atomic import remove_folder, remove_leftovers
from specjax.errors import ConfigError, DataError
from specjax.flags import Flag
from specjax.overwrite import check_replaceable
from specjax.plurals import counted
from specjax.prepare.assemble import assemble
from specjax.prepare.plan import Options, Plan, make_plan, report_medium, report_path
from specjax.prepare.pool import core_count, run_chunks
from specjax.prepare.resume import begin_or_resume, parts_folder
from specjax.progress import Pace, Say, silent
from specjax.spectra import Spectra
from specjax.surveys import arrays, prepared, read, read_xp


@dataclass(frozen=True, kw_only=True)
class PrepareResult:
    """Paths and counts of a run.

    Attributes:
        out: the prepared file.
        report: the table of everything that is refused, duplicated or flagged.
        files: number of files given.
        spectra: number of spectra in the prepared file.
        partners: number of these with a Gaia XP side.
        flagged: {flag: number of spectra in the file with this flag}.
        refused: number of files, or sources in them, that could not be prepared.
        duplicates: number of spectra left out because their id had occurred before.
    """

    out: Path
    report: Path
    files: int
    spectra: int
    partners: int
    flagged: dict[str, int]
    refused: int
    duplicates: int


def prepare_spectra(
    sources: Sequence[Path],
    out: Path,
    *,
    options: Options | None = None,
    xp: Sequence[Path] = (),
    workers: int | None = None,
    say: Say = silent,
) -> PrepareResult | None:
    """Prepare files and folders as one HDF5 file, which `surveys.read` maps into memory.

    Finished chunks are kept beside `out` until the end, so that the same call resumes an interrupted run.
    Everything that is refused, duplicated or flagged is listed in a table beside `out`, named .report.ecsv.

    Args:
        sources: files of spectra, folders of them, patterns and lists, see `plan.given_paths`.
        out: the file to write, .h5 or .hdf5.
        options: options of reading and preprocessing.
        xp: files of Gaia XP spectra with the same ids, for the XP side.
        workers: number of processes, by default the number of cores; with 1, no process is started.
        say: called with each line of progress.

    Returns:
        Paths and counts; None if `out` was already made from the same files and options.

    Raises:
        ConfigError: if `out` has another suffix, or if it or the run to resume was made from other files or
            options; the message names a difference.
        DataError: if there are no files, or none of them can be used.
        SpecjaxError: if a worker process died.
    """
    out = Path(out)
    if out.suffix.lower() not in arrays.HDF5:
        raise ConfigError(f"prepare writes HDF5: {out.name} should end in {' or '.join(arrays.HDF5)}")
    check_replaceable(out)
    plan = make_plan(sources, options or Options(), xp=xp, out=out)
    report_medium((source for chunk in plan.chunks for source in chunk), plan.options, say)
    if out.exists():
        if prepared.recognise(out) and prepared.read_plan(out) == plan.digest:
            _remove_parts(out)
            say(f"{out} was already prepared from these files")
            return None
        raise ConfigError(
            f"{out} exists and was made from other files or options: remove it or choose another name"
        )
    partners = [_read_xp(path) for path in xp]
    folder = parts_folder(out)
    begin_or_resume(folder, plan.record)
    parts = [folder / f"{number:06d}.npz" for number in range(len(plan.chunks))]
    _run(plan, parts, workers or core_count(), say)
    say(f"writing {out}")
    return _finish(parts, out, plan, partners, say)


def _read_xp(path: Path) -> Spectra:
    """Read a file of Gaia XP spectra, or the XP side of a file with both sides."""
    side = read_xp(path)
    return read(path) if side is None else side


def _run(plan: Plan, parts: Sequence[Path], workers: int, say: Say) -> None:
    """Prepare the chunks that have no part yet."""
    todo = [number for number, path in enumerate(parts) if not path.exists()]
    if len(todo) < len(parts):
        say(f"resuming: {len(parts) - len(todo)} of {len(parts)} chunks are already prepared")
    progress = _Progress(plan, todo, say)
    for number, counts in run_chunks(plan, parts, todo, workers):
        progress(number, counts)


class _Progress:
    """Progress of a run, in files and spectra."""

    def __init__(self, plan: Plan, todo: Sequence[int], say: Say) -> None:
        self.plan, self.say, self.pace = plan, say, Pace()
        self.total = sum(len(plan.chunks[number]) for number in todo)
        self.done = self.spectra = self.refused = 0

    def __call__(self, number: int, counts: tuple[int, int]) -> None:
        """Count a finished chunk, and say how far the run is from time to time and at its end."""
        self.done += len(self.plan.chunks[number])
        self.spectra += counts[0]
        self.refused += counts[1]
        if self.done == self.total or self.pace.due():
            made = counted(self.spectra, "spectrum", "spectra")
            self.say(
                f"{self.done} of {counted(self.total, 'file')}: {made}, {self.refused} refused,"
                f" {self.spectra / max(self.pace.elapsed, 1e-3):.0f} spectra/s"
            )


def _finish(parts: Sequence[Path], out: Path, plan: Plan, xp: Sequence[Spectra], say: Say) -> PrepareResult:
    """Write the report and the file, remove the parts, and say the counts."""
    report = report_path(out)
    try:
        assembled = assemble(parts, out, plan, xp)
    except (ValueError, KeyError, EOFError) as error:
        raise DataError(f"{parts[0].parent} is damaged: remove it to start over ({error})") from None
    _remove_parts(out)
    if not assembled.flags.size:
        first = f"; the first: {assembled.report[0][3]}" if assembled.report else ""
        raise DataError(f"none of {plan.file_count} files could be used (see {report}){first}")
    outcomes = Counter(outcome for _, _, outcome, _ in assembled.report)
    result = PrepareResult(
        out=out,
        report=report,
        files=plan.file_count,
        spectra=len(assembled.flags),
        partners=assembled.partners,
        flagged=dict(Counter(flag for flag in assembled.flags.tolist() if flag != Flag.GOOD)),
        refused=outcomes["refused"],
        duplicates=outcomes["duplicate"],
    )
    _say_counts(result, say)
    if 0 < assembled.without_ivar < result.spectra:
        number = counted(assembled.without_ivar, "spectrum", "spectra")
        say(f"{number} without uncertainties: those of the others are not used")
    return result


def _remove_parts(out: Path) -> None:
    """Remove the parts of a finished file, and what a killed run has left of them."""
    remove_folder(parts_folder(out))
    remove_leftovers(out.absolute().parent)


def _say_counts(result: PrepareResult, say: Say) -> None:
    number = counted(result.spectra, "spectrum", "spectra")
    say(f"{counted(result.files, 'file')}: {number}, {result.partners} with a Gaia XP side")
    for flag, count in result.flagged.items():
        say(f"{count} flagged {flag!r}")
    if result.refused or result.duplicates:
        say(f"{result.refused} refused and {result.duplicates} duplicates left out: see {result.report}")
