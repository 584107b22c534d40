"""Rows and seeds over devices: eight forced ones in a process, and two processes of two on loopback."""

from pathlib import Path

import jax
import numpy as np
import pytest

from specjax import devices
from specjax.config import get_preset
from specjax.foundation import inference
from tests.processes import free_address, outcome, start

PROGRAM = Path(__file__).parent / "device_program.py"


@pytest.mark.parametrize(
    ("count", "limit", "size"), [(16, 8, 8), (10, 8, 5), (7, 4, 1), (6, 4, 3), (3, 8, 3)]
)
def test_as_many_devices_as_divide_the_rows(count, limit, size):
    assert devices.largest_divisor(count, limit) == size


def test_one_device_needs_no_mesh():
    variables = {"a": jax.numpy.ones(3)}
    placed = inference.place(variables)
    assert placed.mesh is None
    assert placed.variables["a"] is variables["a"]


class Device:
    def __init__(self, memory):
        self.memory = memory

    def memory_stats(self):
        return self.memory


def test_batches_come_from_memory():
    paper = get_preset("paper")
    sizes = [
        devices.rows_that_fit(paper, 2, Device({"bytes_limit": gigabytes * 2**30}))
        for gigabytes in (1, 8, 80)
    ]
    assert sizes == sorted(sizes)
    assert sizes[0] >= 8
    assert sizes[-1] <= devices.MOST_ROWS
    for gigabytes, rows in zip((1, 8, 80), sizes, strict=True):
        assert rows & (rows - 1) == 0
        assert rows * devices.activation_bytes(paper, 2) <= devices.SHARE * gigabytes * 2**30
    assert devices.rows_that_fit(paper, 4, Device(None)) == devices.ROWS


def test_the_bytes_of_a_spectrum_bound_what_the_compiler_asks_for():
    """The compiled tower's temporary memory is that of the batch, within the estimate that sizes batches."""
    config, rows = get_preset("mini"), 64
    shape = config.specformer
    tokens = np.zeros((1, shape.num_tokens, shape.token_dim), np.float32)
    variables = jax.eval_shape(inference.SpecFormer(shape).init, jax.random.key(0), tokens)
    tree = {"params": {"lamost": {"backbone": variables["params"]}}}
    flux, valid = (jax.ShapeDtypeStruct((rows, 1462), kind) for kind in (np.float32, bool))
    lowered = inference._program.lower(config, "pooled_lamost", "float32", tree, flux, valid)
    used = lowered.compile().memory_analysis().temp_size_in_bytes / rows
    estimate = devices.activation_bytes(config)
    # The estimate counts everything of a block as alive at once; a compiler that frees early needs a half.
    assert 0.25 < used / estimate < 1.5


@pytest.mark.slow
def test_eight_devices_give_what_one_does():
    output = outcome(start(PROGRAM, 8, "one-process"))
    assert "8 devices: same embedding, same fit, an eighth of the work" in output


@pytest.mark.slow
def test_two_processes_give_what_one_does():
    address = free_address()
    both = [start(PROGRAM, 2, "two-processes", address, str(rank)) for rank in range(2)]
    for rank, process in enumerate(both):
        assert f"process {rank} of 2: same embedding, same fit" in outcome(process)
