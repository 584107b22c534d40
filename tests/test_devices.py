"""Placement over devices: eight forced ones in one process, and two processes of two on loopback."""

from pathlib import Path
from types import SimpleNamespace

import jax
import pytest

from specjax import devices
from specjax.foundation import inference
from tests.processes import free_address, outcome, start

PROGRAM = Path(__file__).parent / "device_program.py"


@pytest.mark.parametrize(
    ("count", "limit", "size"), [(16, 8, 8), (10, 8, 5), (7, 4, 1), (6, 4, 3), (3, 8, 3)]
)
def test_largest_divisor(count, limit, size):
    assert devices.largest_divisor(count, limit) == size


@pytest.mark.parametrize(
    ("platform", "capability", "fast"),
    [
        ("gpu", "9.0", True),
        ("gpu", "8.0", True),
        ("gpu", "10.0", True),
        ("gpu", "7.5", False),
        ("gpu", "gfx90a", False),
        ("gpu", None, False),
        ("cpu", None, False),
        ("tpu", None, True),
    ],
)
def test_which_devices_are_fast_in_bfloat16(platform, capability, fast):
    known = {} if capability is None else {"compute_capability": capability}
    device = SimpleNamespace(platform=platform, **known)
    assert devices.has_bfloat16_units(device) is fast


def test_one_device_needs_no_mesh():
    variables = {"a": jax.numpy.ones(3)}
    placed = inference.place(variables)
    assert placed.mesh is None
    assert placed.variables["a"] is variables["a"]


@pytest.mark.slow
def test_eight_devices_give_the_results_of_one():
    output = outcome(start(PROGRAM, 8, "one-process"))
    assert "8 devices: same embedding, same fit, an eighth of the work" in output


@pytest.mark.slow
def test_two_processes_give_the_results_of_one():
    address = free_address()
    both = [start(PROGRAM, 2, "two-processes", address, str(rank)) for rank in range(2)]
    for rank, process in enumerate(both):
        assert f"process {rank} of 2: same embedding, same fit" in outcome(process)
