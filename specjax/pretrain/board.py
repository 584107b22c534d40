"""The scores of a pretraining run for TensorBoard."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from specjax.errors import ConfigError

FOLDER = "tensorboard"


def require_tensorboard() -> None:
    """Raise a ConfigError if files for TensorBoard cannot be written."""
    try:
        import tensorboardX  # noqa: F401
    except ImportError:
        raise ConfigError("--tensorboard needs tensorboardX: pip install 'specjax[tensorboard]'") from None


class Board:
    """Writes the scores of one stage to a folder that TensorBoard shows."""

    def __init__(self, folder: Path, stage: str, step: int) -> None:
        """Start after a step; TensorBoard hides what an interrupted run has written of later ones."""
        from tensorboardX import SummaryWriter

        self._writer: Any = SummaryWriter(str(folder / FOLDER / stage), purge_step=step + 1)

    def write(self, step: int, scores: Mapping[str, float | None]) -> None:
        """Write the scores after a step; None is left out."""
        for name, value in scores.items():
            if value is not None:
                self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        """Close the file."""
        self._writer.close()
