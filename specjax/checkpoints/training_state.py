"""Training states for resuming interrupted runs, in Orbax's format."""

from pathlib import Path
from typing import Any

from specjax.errors import ModelError


def save_training_state(folder: str | Path, state: Any, step: int, *, keep: int = 2) -> None:
    """Write the training state at a step atomically, and delete all but the newest `keep` states.

    Args:
        folder: Folder with one subfolder per step.
        state: Pytree of arrays, scalars and random keys (parameters, optimizer state, ...).
        step: Number of the step; it must be larger than the earlier ones.
        keep: Number of steps to keep.
    """
    import orbax.checkpoint as ocp

    with _manager(folder, max_to_keep=keep) as manager:
        manager.save(step, args=ocp.args.StandardSave(state), force=True)
        manager.wait_until_finished()


def latest_step(folder: str | Path) -> int | None:
    """Return the newest complete step in a folder of training states, None if there is none."""
    if not Path(folder).is_dir():
        return None
    with _manager(folder) as manager:
        step: int | None = manager.latest_step()
        return step


def restore_training_state(folder: str | Path, like: Any) -> tuple[Any, int]:
    """Read the newest complete training state.

    Args:
        folder: Folder given to `save_training_state`.
        like: Pytree of the same structure, with arrays or `jax.ShapeDtypeStruct` as leaves.

    Returns:
        The state and its step.

    Raises:
        ModelError: There is no state, or its structure differs from that of `like`.
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
    """Return an Orbax manager of a folder of steps, without background threads."""
    import orbax.checkpoint as ocp

    return ocp.CheckpointManager(
        Path(folder).resolve(),
        options=ocp.CheckpointManagerOptions(enable_async_checkpointing=False, **options),
    )
