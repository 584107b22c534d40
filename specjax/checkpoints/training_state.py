"""What an interrupted run goes on from: Orbax's files, which only the program that wrote them reads."""

from pathlib import Path
from typing import Any

from specjax.errors import ModelError


def save_training_state(folder: str | Path, state: Any, step: int, *, keep: int = 2) -> None:
    """Write a training state at a step, keeping the ``keep`` newest; complete or absent, also when killed.

    Args:
        folder: where the steps are, one folder each.
        state: any pytree of arrays, scalars and random keys (parameters, optimizer state, ...).
        step: the number it is found by; it must be larger than those before.
        keep: how many steps to keep.
    """
    import orbax.checkpoint as ocp

    with _manager(folder, max_to_keep=keep) as manager:
        manager.save(step, args=ocp.args.StandardSave(state), force=True)
        manager.wait_until_finished()


def latest_step(folder: str | Path) -> int | None:
    """The newest complete step in a training-state folder, or None if there is none."""
    if not Path(folder).is_dir():
        return None
    with _manager(folder) as manager:
        return manager.latest_step()


def restore_training_state(folder: str | Path, like: Any) -> tuple[Any, int]:
    """Read the newest complete training state.

    Args:
        folder: as given to `save_training_state`.
        like: a pytree of the same structure with arrays or `jax.ShapeDtypeStruct`.

    Returns:
        The state and its step.

    Raises:
        ModelError: there is no state, or it has another structure than ``like``.
    """
    import jax
    import orbax.checkpoint as ocp

    step = latest_step(folder)
    if step is None:
        raise ModelError(f"there is no training state in {folder}")
    abstract = jax.eval_shape(lambda: like)
    with _manager(folder) as manager:
        try:
            state = manager.restore(step, args=ocp.args.StandardRestore(abstract))
        except (ValueError, KeyError, TypeError, OSError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ModelError(f"the training state {folder} at step {step} does not fit: {reason}") from None
    return state, step


def _manager(folder: str | Path, **options: Any) -> Any:
    """Orbax's manager of a folder of steps, without background threads."""
    import orbax.checkpoint as ocp

    return ocp.CheckpointManager(
        Path(folder).resolve(),
        options=ocp.CheckpointManagerOptions(enable_async_checkpointing=False, **options),
    )
