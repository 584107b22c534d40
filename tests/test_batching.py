"""Batch sizes and memory estimates."""

import jax
import numpy as np

from specjax import batching
from specjax.config import get_preset
from specjax.foundation import inference
from specjax.foundation.networks import Networks
from specjax.models import SpecFormer

MINI = get_preset("mini")


class Device:
    """A device with that many bytes of memory; one that does not say it, such as a CPU, for None."""

    def __init__(self, memory):
        self.memory = memory

    def memory_stats(self):
        return None if self.memory is None else {"bytes_limit": self.memory}


def test_inference_batches_fit_in_memory():
    paper = get_preset("paper")
    sizes = [batching.inference_batch_size(paper, 2, Device(gigabytes * 2**30)) for gigabytes in (1, 8, 80)]
    assert sizes == sorted(sizes)
    assert sizes[0] >= 8
    assert sizes[-1] <= batching.MAX_ROWS
    for gigabytes, rows in zip((1, 8, 80), sizes, strict=True):
        assert rows & (rows - 1) == 0
        assert rows * batching.activation_bytes(paper, 2) <= batching.MEMORY_FRACTION * gigabytes * 2**30
    assert batching.inference_batch_size(paper, 4, Device(None)) == batching.DEFAULT_ROWS


def test_the_estimate_of_activations_agrees_with_the_compiler():
    """The temporary memory of the compiled tower, per spectrum, is close to the estimate."""
    config, rows = get_preset("mini"), 64
    shape = config.specformer
    tokens = np.zeros((1, shape.num_tokens, shape.token_dim), np.float32)
    variables = jax.eval_shape(SpecFormer(shape).init, jax.random.key(0), tokens)
    tree = {"params": {"lamost": {"backbone": variables["params"]}}}
    flux, valid = (jax.ShapeDtypeStruct((rows, 1462), kind) for kind in (np.float32, bool))
    lowered = inference._run.lower(config, Networks.lamost_mean, "float32", tree, flux, valid)
    used = lowered.compile().memory_analysis().temp_size_in_bytes / rows
    estimate = batching.activation_bytes(config)
    # The estimate counts all arrays of a block as alive at once; a compiler that frees early needs half.
    assert 0.25 < used / estimate < 1.5


def test_the_batch_fits_in_memory():
    row = batching.training_bytes(MINI)

    def rows(fitting, batch=16, seeds=4):
        return batching.micro_batch_size(
            MINI, batch, seeds, device=Device(fitting * seeds * row / batching.MEMORY_FRACTION)
        )

    assert rows(16.1) == 16
    assert rows(15.9) == 8  # equal parts
    assert rows(1.1) == rows(0.001) == 1
    assert rows(9.1, batch=7) == 7
    assert rows(6.9, batch=7) == 1


def test_the_activations_of_a_cpu_block_stay_below_the_limit(monkeypatch):
    monkeypatch.setattr(batching, "CPU_BLOCK_BYTES", 4 * 8 * batching.activation_bytes(MINI))
    assert batching.micro_batch_size(MINI, 16, 4, device=Device(None)) == 8
    assert batching.micro_batch_size(MINI, 16, 64, device=Device(None)) == 1


def test_a_cpu_has_the_memory_of_the_machine(monkeypatch):
    pages = {"SC_PHYS_PAGES": 1000, "SC_PAGE_SIZE": 4096}
    monkeypatch.setattr(batching.os, "sysconf", pages.__getitem__)
    assert batching.device_memory(Device(None)) == 4_096_000
    monkeypatch.delattr(batching.os, "sysconf")
    assert batching.device_memory(Device(None)) == batching.FALLBACK_MEMORY
    assert batching.device_memory(Device(77)) == 77
