"""Models and adapters as folders with a manifest, and training states (Orbax) for resuming."""

from specjax.checkpoints.folders import (
    Stored,
    load_adapter,
    load_model,
    save_adapter,
    save_model,
)
from specjax.checkpoints.training_state import latest_step, restore_training_state, save_training_state
from specjax.checkpoints.trees import Arrays, flatten, unflatten

__all__ = [
    "Arrays",
    "Stored",
    "flatten",
    "latest_step",
    "load_adapter",
    "load_model",
    "restore_training_state",
    "save_adapter",
    "save_model",
    "save_training_state",
    "unflatten",
]
