"""Batches of spectra streamed from disk with grain, in the order of `order.Order`.

A grain data set reads one window after the other in a thread of its own, and cuts it into batches. In memory
are three windows at most, whatever the number of spectra on disk.
"""

import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from specjax.errors import ConfigError
from specjax.pretrain.order import Order
from specjax.surveys.training_rows import Rows
from specjax.typing import AnyArray, IntArray

Batch = dict[str, AnyArray]
"""Host arrays by name, see `Rows.empty`."""


class Stream:
    """An endless iterator over the batches of rows, of which each process reads its own lanes."""

    def __init__(self, rows: Rows, order: Order, *, process: int = 0, processes: int = 1) -> None:
        """Start at the first batch.

        Args:
            rows: the spectra.
            order: the order of all processes together.
            process: number of this process.
            processes: number of processes; it must divide the number of lanes.

        Raises:
            ConfigError: it does not, or grain is not installed.
        """
        if order.lanes % processes:
            raise ConfigError(f"{processes} processes cannot share {order.lanes} lanes equally")
        mine = order.lanes // processes
        self.rows, self.order = rows, order
        self._lanes = range(process * mine, (process + 1) * mine)
        self._iterator = iter(self._dataset())

    def __next__(self) -> Batch:
        """Return this process's rows of the next batch."""
        batch: Batch = next(self._iterator)
        return batch

    def state(self) -> dict[str, Any]:
        """Return the position after the last batch, in plain numbers; it is the same in all processes."""
        state: dict[str, Any] = self._iterator.get_state()
        return state

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go to a position that `state` returned, for the same rows and order."""
        self._iterator.set_state(dict(state))

    def ids(self, rows: IntArray) -> list[str]:
        """Return the ids of rows, by their numbers."""
        return self.rows.ids(rows)

    def _dataset(self) -> Any:
        grain = _grain()
        windows = grain.MapDataset.range(sys.maxsize).map(self.read_window)
        reading = windows.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=1))
        return grain.experimental.FlatMapIterDataset(reading, _split(grain))

    def read_window(self, window: int) -> Batch:
        """Read a window: arrays (batches, rows, ...) of this process's rows of each batch."""
        order, window = self.order, int(window)
        count, size = order.batches(window), order.block_rows
        made = {
            name: np.empty((count, len(self._lanes), order.share, *array.shape[1:]), array.dtype)
            for name, array in self.rows.empty(0).items()
        }
        for index, lane in enumerate(self._lanes):
            starts = order.block_starts(window, lane)
            lane_rows = self.rows.empty(len(starts) * size)
            for block, start in enumerate(starts):
                self.rows.read_into(lane_rows, block * size, int(start), size)
            for batch, chosen in enumerate(order.shuffle(window, lane)):
                for name, array in lane_rows.items():
                    # With "clip", take writes to `out` without a buffer in between; no index is outside.
                    np.take(array, chosen, axis=0, out=made[name][batch, index], mode="clip")
        return {name: array.reshape(count, -1, *array.shape[3:]) for name, array in made.items()}


def _split(grain: Any) -> Any:
    """Make grain's transform of a window into its batches."""

    class Split(grain.experimental.FlatMapTransform):  # type: ignore[misc]
        max_fan_out = sys.maxsize

        def flat_map(self, element: Batch) -> list[Batch]:
            return [{n: a[batch] for n, a in element.items()} for batch in range(len(element["row"]))]

    return Split()


def _grain() -> Any:
    try:
        import grain
    except ImportError:
        raise ConfigError("pretraining from files needs grain: pip install 'specjax[pretrain]'") from None
    return grain
