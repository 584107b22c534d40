"""Models and adapters as folders with a manifest, and training states (Orbax) for resuming."""

from specjax.checkpoints.folders import (
    Stored,
    load_adapter,
    load_model,
    save_adapter,
    save_model,
)
from specjax.checkpoints.training_state import Restored, TrainingStates
from specjax.checkpoints.trees import Arrays, flatten, unflatten

__all__ = [
    "Arrays",
    "Restored",
    "Stored",
    "TrainingStates",
    "flatten",
    "load_adapter",
    "load_model",
    "save_adapter",
    "save_model",
    "unflatten",
]
