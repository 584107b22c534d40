"""The order in which streamed spectra are trained on: a shuffle that reads the disk in blocks.

Reading rows at random is slow, and a permutation of all rows takes memory that grows with them. Instead,

1. the rows are cut into blocks of consecutive rows, from a random row on, and the blocks are shuffled;
2. the shuffled blocks are dealt to lanes; a batch takes the same number of rows from each lane;
3. in each lane, the rows of some blocks (a window) are shuffled together.

All follows from the seed, and no part depends on the number of processes: each reads the lanes that are its
own. What does not fill a block, a lane or a batch is left out of an epoch, other rows in every one.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from specjax.errors import ConfigError
from specjax.typing import IntArray

LANES = 8
BLOCK = 256  # rows, 1.5 MB of LAMOST spectra: a disk reads it at full speed
WINDOW = 8192  # rows of all lanes that are shuffled together and held in memory


@dataclass(frozen=True, kw_only=True)
class Order:
    """The order of `rows` rows in batches of `batch` rows.

    Attributes:
        rows: number of rows.
        batch: rows of a batch, of all processes together.
        seed: of the shuffle.
        lanes: number of lanes, a divisor of `batch`; as many processes can share the work.
        block: largest number of consecutive rows that are read together.
        window: rows of all lanes that are shuffled together, about.

    Raises:
        ConfigError: fewer rows than one batch, or a batch that the lanes do not divide.
    """

    rows: int
    batch: int
    seed: int = 0
    lanes: int = LANES
    block: int = BLOCK
    window: int = WINDOW

    def __post_init__(self) -> None:
        if self.rows < self.batch:
            raise ConfigError(f"{self.rows} spectra do not fill a batch of {self.batch}; set --batch")
        if self.batch % self.lanes:
            raise ConfigError(f"a batch of {self.batch} rows cannot be divided into {self.lanes} equal lanes")

    @property
    def share(self) -> int:
        """Rows of a batch from each lane."""
        return self.batch // self.lanes

    @property
    def block_rows(self) -> int:
        """Rows of a block: at least eight blocks per lane, and enough rows per lane for a batch."""
        size = min(self.block, max(self.rows // (8 * self.lanes), 1))
        while self.rows // size // self.lanes * size < self.share:
            size = max(size // 2, 1)
        return size

    @property
    def blocks(self) -> int:
        """Blocks of each lane in an epoch."""
        return self.rows // self.block_rows // self.lanes

    @property
    def windows(self) -> int:
        """Windows of an epoch, each of which fills at least one batch."""
        per_window = max(self.window // self.lanes, 8 * self.share)
        return max(self.blocks * self.block_rows // per_window, 1)

    def batches(self, window: int) -> int:
        """Return the number of batches in a window, counted over all epochs."""
        first, last = self._span(window % self.windows)
        return (last - first) * self.block_rows // self.share

    @property
    def steps_per_epoch(self) -> int:
        """Batches of an epoch."""
        return sum(self.batches(window) for window in range(self.windows))

    def block_starts(self, window: int, lane: int) -> IntArray:
        """Return the first rows of the blocks of a lane in a window; they may run over the last row."""
        epoch, within = divmod(window, self.windows)
        rng = np.random.default_rng([self.seed, epoch])
        offset = rng.integers(self.rows)
        order = rng.permutation(self.rows // self.block_rows)
        first, last = self._span(within)
        mine = order[lane * self.blocks : (lane + 1) * self.blocks][first:last]
        return np.asarray((offset + mine * self.block_rows) % self.rows, np.int64)

    def shuffle(self, window: int, lane: int) -> IntArray:
        """Return the rows of a lane's window in the order of its batches: (batches, share)."""
        first, last = self._span(window % self.windows)
        count = self.batches(window)
        rng = np.random.default_rng([self.seed, window, lane])
        order = rng.permutation((last - first) * self.block_rows)
        return order[: count * self.share].reshape(count, self.share)

    def rows_of(self, window: int) -> Iterator[IntArray]:
        """Yield the rows (batch,) of each batch of a window, lane by lane."""
        parts = []
        for lane in range(self.lanes):
            starts = self.block_starts(window, lane)
            rows = (starts[:, None] + np.arange(self.block_rows)) % self.rows
            parts.append(rows.ravel()[self.shuffle(window, lane)])
        yield from np.concatenate(parts, axis=1)

    def _span(self, within: int) -> tuple[int, int]:
        """Return the first block of a window of an epoch and the one after its last."""
        return within * self.blocks // self.windows, (within + 1) * self.blocks // self.windows
