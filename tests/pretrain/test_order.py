import numpy as np
import pytest

from specjax.errors import ConfigError
from specjax.pretrain.order import Order

ORDERS = [
    Order(rows=64, batch=64),
    Order(rows=1000, batch=32),
    Order(rows=1000, batch=992),
    Order(rows=50_003, batch=512, seed=3),
    Order(rows=5000, batch=30, lanes=6, window=600),
    Order(rows=7, batch=1, lanes=1),
]


def epoch(order, number=0):
    """The rows of all batches of an epoch: (batches, batch)."""
    first = number * order.windows
    return np.concatenate([list(order.rows_of(window)) for window in range(first, first + order.windows)])


@pytest.mark.parametrize("order", ORDERS, ids=str)
def test_an_epoch_has_nearly_every_row_and_none_twice(order):
    rows = epoch(order)
    assert rows.shape == (order.steps_per_epoch, order.batch)
    assert rows.min() >= 0
    assert rows.max() < order.rows
    assert len(np.unique(rows)) == rows.size
    # A remainder of blocks that the lanes cannot share equally, and one batch for every window.
    left_out = order.block_rows * order.lanes + order.batch * order.windows
    assert rows.size >= order.rows - left_out


def test_what_is_left_out_of_an_epoch_is_in_the_next_ones():
    order = Order(rows=1000, batch=48, lanes=8)
    seen = set(epoch(order).ravel())
    assert len(seen) < 1000
    for number in range(1, 6):
        seen |= set(epoch(order, number).ravel())
    assert len(seen) == 1000


def test_the_order_follows_from_the_seed():
    order = Order(rows=5000, batch=64, seed=1)
    np.testing.assert_array_equal(epoch(order), epoch(Order(rows=5000, batch=64, seed=1)))
    assert not np.array_equal(epoch(order), epoch(Order(rows=5000, batch=64, seed=2)))
    assert not np.array_equal(epoch(order), epoch(order, 1))


def test_batches_mix_rows_from_everywhere():
    """Neighbours on disk are rarely in the same batch, and batches span all rows."""
    rows = np.sort(epoch(Order(rows=100_000, batch=256, seed=0)), axis=1)
    assert (np.diff(rows, axis=1) == 1).mean() < 0.05
    assert (rows[:, -1] - rows[:, 0]).min() > 50_000


def test_rows_are_read_in_long_runs():
    order = Order(rows=100_000, batch=256)
    assert order.block_rows == 256
    assert len(order.block_starts(0, 0)) * order.lanes * order.block_rows <= order.window


def test_what_cannot_be_ordered_is_refused():
    with pytest.raises(ConfigError, match="10 spectra do not fill a batch of 16"):
        Order(rows=10, batch=16)
    with pytest.raises(ConfigError, match="cannot be divided into 8"):
        Order(rows=100, batch=12)
