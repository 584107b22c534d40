"""The folder of the training states of a run, OUT.training."""

from pathlib import Path

from specjax.atomic import atomic_file
from specjax.errors import DataError


def states_of(out: Path) -> Path:
    """Return the folder of the training states of the model folder `out`."""
    return out.with_name(out.name + ".training")


def check_interrupted(states: Path, resume: bool) -> None:
    """Check that an interrupted run is continued only on request.

    Raises:
        DataError: there are states and `resume` is False.
    """
    if states.exists() and not resume:
        raise DataError(f"{states} holds an interrupted run: continue it with --resume, or remove it")


def check_states(states: Path, settings: str, resume: bool) -> None:
    """Make the folder of the training states, which records the settings of the run they belong to.

    Raises:
        DataError: there are states of an interrupted run and `resume` is False, or they are of other options.
    """
    record = states / "settings.json"
    check_interrupted(states, resume)
    if record.is_file() and record.read_text() != settings:
        raise DataError(f"{states} holds a run with other options: repeat them, or remove the folder")
    states.mkdir(parents=True, exist_ok=True)
    with atomic_file(record) as temporary:
        temporary.write_text(settings)
