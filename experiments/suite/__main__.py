"""Run all experiments on the models that ship, and write docs/experiments.md from their results.

    python -m experiments.suite [--only few_shot fusing] [--out runs/experiments]

Finished rows are kept in the folder of results, so that the same command goes on with a run that was killed;
remove the folder to measure anew after a change of the code. An experiment that fails is named in the page
with its error and does not stop the others. Expected: 75 minutes on two cores beside
other work (92 minutes of CPU time).
"""

import dataclasses
import importlib
import time
import traceback
from pathlib import Path

from experiments.suite.frame import Results
from experiments.suite.page import write_page
from specjax.atomic import atomic_file
from specjax.cache import use_compilation_cache
from specjax.errors import ConfigError, SpecjaxError
from specjax.progress import Say, duration, say

MINUTES = {
    "subsets": 11.0,
    "few_shot": 13.0,
    "factors": 13.0,
    "dose": 10.0,
    "shifts": 6.0,
    "many_labels": 2.0,
    "metal_poor": 3.0,
    "fusing": 4.0,
    "retrieval": 1.0,
    "two_instruments": 2.0,
    "label_noise": 3.0,
    "time_to_result": 7.0,
}
"""The experiments in the order of their sections, and the minutes of each on two cores beside other work."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the command line.

    Attributes:
        only: experiments to run; the page shows the others as they were last run.
        out: folder with one folder of results for each experiment.
        page: the page to write; its plots are put into the folder beside it.
    """

    only: tuple[str, ...] = ()
    out: Path = Path("runs/experiments")
    page: Path = Path("docs/experiments.md")


def main(options: Options, tell: Say = say) -> dict[str, str]:
    """Run the experiments and write the page; returns the errors of those that failed, by name.

    Raises:
        ConfigError: a name that is no experiment.
    """
    unknown = [name for name in options.only if name not in MINUTES]
    if unknown:
        raise ConfigError(f"no experiment {unknown[0]!r}: they are {', '.join(MINUTES)}")
    use_compilation_cache()
    wanted = [name for name in MINUTES if name in options.only or not options.only]
    failures: dict[str, str] = {}
    started = time.monotonic()
    for index, name in enumerate(wanted):
        tell(_progress(wanted, index, time.monotonic() - started))
        try:
            run_one(name, options.out / name, tell)
        except Exception as error:  # whatever it is, the other experiments go on
            failures[name] = " ".join(f"{type(error).__name__}: {error}".split())
            tell(f"{name} failed: {failures[name]}")
            _keep_traceback(options.out / name, error)
        write_page(options.page, options.out, list(MINUTES), failures)
    tell(f"wrote {options.page}" + (f"; {len(failures)} of {len(wanted)} failed" if failures else ""))
    return failures


def run_one(name: str, out: Path, tell: Say) -> None:
    """Run an experiment with its default settings and write its results."""
    module = importlib.import_module(f"experiments.suite.{name}")
    results: Results = module.run(module.get_config(), out, lambda line: tell(f"  {line}"))
    results.write(out)


def _progress(wanted: list[str], index: int, elapsed: float) -> str:
    """Return the line of progress before an experiment: its number, and the time left for all.

    The pace of those before it corrects the times of `MINUTES`; it is 1 before the first.
    """
    before, left = (sum(MINUTES[name] for name in part) for part in (wanted[:index], wanted[index:]))
    pace = elapsed / (60 * before) if before else 1.0
    return f"{index + 1}/{len(wanted)} {wanted[index]}: about {duration(60 * left * pace)} left"


def _keep_traceback(out: Path, error: Exception) -> None:
    """Write the traceback of an error that is none of the user's into the folder of the experiment."""
    if not isinstance(error, SpecjaxError):
        with atomic_file(out / "error.txt") as temporary:
            temporary.write_text("".join(traceback.format_exception(error)))


if __name__ == "__main__":
    import tyro

    from specjax.cli import run

    def program() -> None:
        """Fail with one line if an experiment has failed."""
        if failures := main(tyro.cli(Options, description=__doc__)):
            raise SpecjaxError(f"these experiments failed: {', '.join(failures)}")

    run(program)
