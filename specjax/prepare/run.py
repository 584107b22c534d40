"""The run: what is there already, what is to be done, and what became of the files."""

from __future__ import annotations

import json
import shutil
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from specjax.atomic import atomic_file
from specjax.errors import ConfigError, DataError
from specjax.prepare.assemble import assemble, write_report
from specjax.prepare.plan import Options, Plan, difference, make_plan, report_path
from specjax.prepare.pool import core_count, run_chunks
from specjax.progress import Say
from specjax.spectra import Spectra
from specjax.surveys import arrays, prepared, read, read_xp

_SECONDS_BETWEEN_LINES = 5.0


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Numbers of a run.

    Attributes:
      out, report: the prepared file, and the table of what was refused or flagged.
      files: how many were given.
      spectra: how many are in the file; `partners` of them have a Gaia XP side.
      flagged: {flag: number} of them.
      refused: files, or sources in them, that are not in the file; `duplicates`: spectra whose id was.
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
    say: Say = print,
) -> Summary | None:
    """Prepare files and folders as one HDF5 file, which `surveys.read` maps into memory.

    What is finished is kept beside `out` until all is: the same call again goes on from there. What could not
    be used is in a table beside `out`, named .report.ecsv.

    Args:
      sources: files of spectra, or folders of them.
      out: the file to write, .h5 or .hdf5.
      options: how.
      xp: files of Gaia XP spectra of the same ids, for the XP side.
      workers: processes; as many as there are cores where None. A single one works without others.
      say: takes lines of progress.

    Returns:
      What was done; None if `out` had been made from the same files and options before.

    Raises:
      ConfigError: another suffix, or `out` or a run that it goes on from was made from other files or
        options; the message says what differs.
      DataError: nothing there, or nothing that could be used.
      SpecjaxError: a worker process died.
    """
    out = Path(out)
    if out.suffix.lower() not in arrays.HDF5:
        raise ConfigError(f"prepare writes HDF5: {out.name} should end in {' or '.join(arrays.HDF5)}")
    plan = make_plan(sources, options or Options(), xp=xp, out=out)
    if out.exists():
        if prepared.recognise(out) and prepared.read_plan(out) == plan.digest:
            say(f"{out} was prepared from these files before")
            return None
        raise ConfigError(
            f"{out} exists, and was made from other files or options: remove it, or name another"
        )
    partners = [_read_partners(path) for path in xp]
    folder = out.with_name(f".{out.name}.parts")
    _begin(folder, plan)
    parts = [folder / f"{number:06d}.npz" for number in range(len(plan.chunks))]
    _run(plan, parts, workers or core_count(), say)
    say(f"writing {out}")
    return _finish(parts, out, plan, partners, say)


def _read_partners(path: Path) -> Spectra:
    """Gaia XP spectra of a file of them, or of one that brings them along."""
    side = read_xp(path)
    return read(path) if side is None else side


def _begin(folder: Path, plan: Plan) -> None:
    """Make the folder of parts, or check that an earlier run with it was the same."""
    record = folder / "plan.json"
    if record.exists():
        try:
            found = difference(json.loads(record.read_text()), plan.record)
        except (ValueError, KeyError, TypeError, AttributeError):
            found = "its plan.json is damaged"
        if found:
            raise ConfigError(
                f"{folder} holds an unfinished run that differs: {found}. Remove it to begin anew"
            )
        return
    with atomic_file(record) as temporary:
        temporary.write_text(json.dumps(plan.record))


def _run(plan: Plan, parts: Sequence[Path], workers: int, say: Say) -> None:
    """Prepare the chunks that have no part yet."""
    todo = [number for number, path in enumerate(parts) if not path.exists()]
    if len(todo) < len(parts):
        say(f"going on: {len(parts) - len(todo)} of {len(parts)} chunks are there already")
    progress = _Progress(plan, todo, say)
    for number, counts in run_chunks(plan, parts, todo, workers):
        progress(number, counts)


class _Progress:
    """A line now and then."""

    def __init__(self, plan: Plan, todo: Sequence[int], say: Say) -> None:
        self.plan, self.say = plan, say
        self.total = sum(len(plan.chunks[number]) for number in todo)
        self.done = self.spectra = self.refused = 0
        self.begun = self.last = time.monotonic()

    def __call__(self, number: int, counts: tuple[int, int]) -> None:
        """Note a finished chunk."""
        self.done += len(self.plan.chunks[number])
        self.spectra += counts[0]
        self.refused += counts[1]
        now = time.monotonic()
        if now - self.last < _SECONDS_BETWEEN_LINES and self.done < self.total:
            return
        self.last = now
        rate = self.spectra / max(now - self.begun, 1e-3)
        self.say(
            f"{self.done} of {self.total} files: {self.spectra} spectra, {self.refused} refused,"
            f" {rate:.0f} spectra/s"
        )


def _finish(parts: Sequence[Path], out: Path, plan: Plan, xp: Sequence[Spectra], say: Say) -> Summary:
    """Write the file and the report, remove the parts, and say what became of the files."""
    report = report_path(out)
    try:
        outcome = assemble(parts, out, plan, xp)
    except (ValueError, KeyError, EOFError) as error:
        raise DataError(f"{parts[0].parent} is damaged: remove it and begin anew ({error})") from None
    write_report(report, outcome.report)
    shutil.rmtree(parts[0].parent, ignore_errors=True)
    if not outcome.flags.size:
        first = f"; the first: {outcome.report[0][3]}" if outcome.report else ""
        raise DataError(f"none of {plan.sources} files could be used (see {report}){first}")
    outcomes = Counter(outcome for _, _, outcome, _ in outcome.report)
    flagged = Counter(flag for flag in outcome.flags.tolist() if flag)
    summary = Summary(
        out=out,
        report=report,
        files=plan.sources,
        spectra=len(outcome.flags),
        partners=outcome.partners,
        flagged=dict(flagged),
        refused=outcomes["refused"],
        duplicates=outcomes["duplicate"],
    )
    _tell(summary, say)
    if 0 < outcome.bare < summary.spectra:
        say(
            f"{outcome.bare} spectra came without uncertainties: those of the others are not used beside them"
        )
    return summary


def _tell(summary: Summary, say: Say) -> None:
    say(f"{summary.files} files: {summary.spectra} spectra, {summary.partners} with a Gaia XP side")
    for flag, count in summary.flagged.items():
        say(f"{count} flagged {flag!r}")
    if summary.refused or summary.duplicates:
        say(
            f"{summary.refused} refused and {summary.duplicates} left out as duplicates: see {summary.report}"
        )
