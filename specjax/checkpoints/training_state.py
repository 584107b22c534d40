"""Training states for resuming interrupted runs, in Orbax's format, with a SHA-256 of each of their files.

Orbax's own format has no checksum of the arrays: almost any flipped bit would change a number without a word.
"""

import json
import logging
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from specjax.checkpoints.tensor_file import sha256_of
from specjax.errors import ModelError, TrainingError, one_line

log = logging.getLogger(__name__)

SUMS = "sha256.json"
"""The file in the folder of a state that has the SHA-256 of the others by their names."""


class Restored(NamedTuple):
    """A restored training state, the position of its input and its step."""

    state: Any
    position: dict[str, Any]
    step: int


class TrainingStates:
    """The training states of a run in a folder with one subfolder per step.

    They are written in the background, each atomically; use it as a context manager, which waits for the last
    one. Under `jax.distributed` all processes share the folder, and each writes and reads its own parts of
    the arrays. A state may be restored on another number of devices than it was saved from.
    """

    def __init__(self, folder: str | Path, *, keep: int = 2) -> None:
        """Open a folder, which need not exist, and keep the newest `keep` states in it."""
        import orbax.checkpoint as ocp

        self.folder = Path(folder)
        self._saving, self._hook = 0, sys.unraisablehook
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            enable_async_checkpointing=True,
            cleanup_tmp_directories=True,  # of a run that was killed
            async_options=ocp.options.AsyncOptions(post_finalization_callback=self._seal),
        )
        self._manager = ocp.CheckpointManager(self.folder.resolve(), options=options)

    def __enter__(self) -> "TrainingStates":
        logging.getLogger("absl").addFilter(_is_no_error)
        # What Orbax leaves undone after an error is nobody else's concern.
        warnings.filterwarnings("ignore", "coroutine 'async_serialize.* was never awaited", RuntimeWarning)
        logging.getLogger("asyncio").addFilter(_is_retrieved)
        self._hook, sys.unraisablehook = sys.unraisablehook, _without_closed_loops(sys.unraisablehook)
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        try:
            with self._reported() if kind is None else suppress(Exception):  # the first error is the cause
                self._manager.close()
            if kind is None:  # after an error, threads still report
                sys.unraisablehook = self._hook
                logging.getLogger("asyncio").removeFilter(_is_retrieved)
        finally:
            logging.getLogger("absl").removeFilter(_is_no_error)

    @contextmanager
    def _reported(self) -> Iterator[None]:
        """Turn a state that cannot be written into an error of one line; Orbax raises many types."""
        try:
            yield
        except Exception as error:
            path = self.folder / str(self._saving)
            raise TrainingError(f"the training state {path} cannot be written: {_reason(error)}") from None

    def latest_step(self) -> int | None:
        """Return the newest complete step, None if there is none."""
        step: int | None = self._manager.latest_step()
        return step

    def save(self, step: int, state: Any, position: dict[str, Any] | None = None) -> None:
        """Write the state at a step.

        Args:
            step: number of the step; it must be larger than the earlier ones.
            state: pytree of arrays, scalars and random keys (parameters, optimizer state, ...). Its buffers
                may be reused as soon as this returns.
            position: of the input, in plain numbers.

        Raises:
            TrainingError: this state, or the one before it, cannot be written.
        """
        import jax
        import orbax.checkpoint as ocp

        if jax.default_backend() == "cpu":  # where Orbax writes from the buffers themselves
            state = jax.tree.map(jax.numpy.copy, state)
        items = {"state": ocp.args.StandardSave(state), "position": ocp.args.JsonSave(position or {})}
        self.wait()  # before the number changes
        self._saving = step
        with self._reported():
            self._manager.save(step, args=ocp.args.Composite(**items), force=True)

    def wait(self) -> None:
        """Wait until all states are written.

        Raises:
            TrainingError: one cannot be written.
        """
        with self._reported():
            self._manager.wait_until_finished()

    def restore(self, like: Any) -> Restored:
        """Read the newest complete state.

        Args:
            like: pytree of the same structure; its leaves are arrays or `jax.ShapeDtypeStruct`, on whose
                devices the state is placed.

        Raises:
            ModelError: there is no state, it is damaged, or its structure differs from that of `like`.
        """
        import orbax.checkpoint as ocp

        step = self.latest_step()
        if step is None:
            raise ModelError(f"there is no training state in {self.folder}")
        _check(self.folder / str(step))
        items = {"state": ocp.args.StandardRestore(_abstract(like)), "position": ocp.args.JsonRestore()}
        try:
            found = self._manager.restore(step, args=ocp.args.Composite(**items))
        except Exception as error:  # Orbax raises many types, and Exception itself
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ModelError(
                f"the training state {self.folder} at step {step} does not fit: {reason}"
            ) from None
        return Restored(found["state"], found["position"], step)

    def _seal(self) -> None:
        """Write the hashes of a state that is complete but for its name, which Orbax changes last."""
        for folder in self.folder.glob(f"{self._saving}.orbax-checkpoint-tmp*"):
            sums = {name: sha256_of(folder / name) for name in _files(folder)}
            (folder / SUMS).write_text(json.dumps(sums, indent=1))


def _is_no_error(record: logging.LogRecord) -> bool:
    """Return whether a message of Orbax is no error: it raises those, and logs each with tracebacks."""
    return record.levelno < logging.ERROR


def _is_retrieved(record: logging.LogRecord) -> bool:
    """Return whether a message of asyncio is not of a task beside the one whose error Orbax has raised."""
    return "exception was never retrieved" not in record.getMessage().partition("\n")[0]


def _without_closed_loops(hook: Callable[[Any], Any]) -> Callable[[Any], None]:
    """Return a hook for exceptions that cannot be raised, which passes on all but those of a closed loop.

    If a file cannot be written, Orbax closes the loop to which TensorStore's threads report the others, and
    Python would print a traceback for each.
    """

    def passing(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            hook(unraisable)

    return passing


def _reason(error: Exception) -> str:
    """Return why a file cannot be written: the error of the system if there is one, or the first line."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if found := re.search(r"os_error_code='(\d+)'", str(error)):
        return os.strerror(int(found[1]))
    return one_line((str(error).strip().splitlines() or [type(error).__name__])[0])


def _files(folder: Path) -> list[str]:
    """List the files below a folder that have arrays and what describes them, by their names from there."""
    inner = (path for path in folder.glob("*/**/*") if path.is_file())  # above are the times of Orbax's steps
    return sorted(path.relative_to(folder).as_posix() for path in inner)


def _check(folder: Path) -> None:
    """Compare the files of a state with their hashes; several processes divide them.

    Raises:
        ModelError: a file is damaged or missing.
    """
    import jax

    if not (folder / SUMS).exists():
        log.warning("%s has no checksums, so damage to it is not noticed", folder)
        return
    try:
        sums = json.loads((folder / SUMS).read_text())
        for name in sorted(sums)[jax.process_index() :: jax.process_count()]:
            if sha256_of(folder / name) != sums[name]:
                raise ValueError(f"{name} differs from its SHA-256")
    except (OSError, ValueError, TypeError, AttributeError) as error:
        advice = "remove it to continue from the state before it, if there is one"
        raise ModelError(f"the training state {folder} is damaged: {error}; {advice}") from None


def _abstract(tree: Any) -> Any:
    """Replace arrays by their shapes, types and placements."""
    import jax

    def shape(leaf: Any) -> Any:
        if isinstance(leaf, jax.Array):
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
        return leaf

    return jax.tree.map(shape, tree)
