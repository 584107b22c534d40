"""Batch sizes and memory estimates of inference; for training see tests/train/test_micro_batches.py."""

import jax
import numpy as np

from specjax import batching
from specjax.config import get_preset
from specjax.foundation import inference


class Device:
    def __init__(self, memory):
        self.memory = memory

    def memory_stats(self):
        return self.memory


def test_inference_batches_fit_in_memory():
    paper = get_preset("paper")
    sizes = [
        batching.inference_batch_size(paper, 2, Device({"bytes_limit": gigabytes * 2**30}))
        for gigabytes in (1, 8, 80)
    ]
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
    variables = jax.eval_shape(inference.SpecFormer(shape).init, jax.random.key(0), tokens)
    tree = {"params": {"lamost": {"backbone": variables["params"]}}}
    flux, valid = (jax.ShapeDtypeStruct((rows, 1462), kind) for kind in (np.float32, bool))
    lowered = inference._program.lower(config, "pooled_lamost", "float32", tree, flux, valid)
    used = lowered.compile().memory_analysis().temp_size_in_bytes / rows
    estimate = batching.activation_bytes(config)
    # The estimate counts all arrays of a block as alive at once; a compiler that frees early needs half.
    assert 0.25 < used / estimate < 1.5
