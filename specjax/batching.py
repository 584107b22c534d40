"""Batch sizes that fit in the memory of a device, from estimates of the memory per spectrum."""

import os

import jax
import numpy as np

from specjax.config import ModelConfig
from specjax.devices import largest_divisor
from specjax.typing import AnyArray

DEFAULT_ROWS = 64  # spectra per batch on a device that does not report its memory, such as a CPU
MAX_ROWS = 1024  # larger matrix products are no more efficient
CPU_BLOCK_BYTES = 64 * 2**20  # activations of one block beyond which a CPU trains at the speed of its memory
MEMORY_FRACTION = 0.25  # of the memory of a device, for the activations of one batch
FALLBACK_MEMORY = 4 * 2**30  # bytes, if neither the device nor the system reports its memory


def inference_batch_size(config: ModelConfig, itemsize: int = 4, device: jax.Device | None = None) -> int:
    """Return the number of spectra per forward pass on a device, a power of two from 8 to MAX_ROWS.

    A forward pass holds the residual stream, the inputs and outputs of one layer and the attention weights of
    one block, but nothing of earlier blocks.

    Args:
        config: sizes of the model.
        itemsize: bytes per number of the activations.
        device: by default the first one of this process.
    """
    stats = _memory_stats(device)
    if "bytes_limit" not in stats:
        return DEFAULT_ROWS
    fitting = MEMORY_FRACTION * stats["bytes_limit"] / activation_bytes(config, itemsize)
    return int(min(max(2 ** int(np.log2(max(fitting, 1))), 8), MAX_ROWS))


def micro_batch_size(
    config: ModelConfig, batch: int, seeds: int, itemsize: int = 4, device: jax.Device | None = None
) -> int:
    """Return how many rows of a batch each seed trains the LAMOST tower on at a time.

    It is the largest divisor of `batch` that fits in memory, and at least 1. On a CPU it is also limited by
    CPU_BLOCK_BYTES.
    """
    fitting = MEMORY_FRACTION * device_memory(device) / (seeds * training_bytes(config, itemsize))
    if not _memory_stats(device):  # a CPU
        fitting = min(fitting, CPU_BLOCK_BYTES / (seeds * activation_bytes(config, itemsize)))
    return largest_divisor(batch, max(int(fitting), 1))


def device_memory(device: jax.Device | None = None) -> int:
    """Return the memory of a device in bytes; if the device does not report it, that of the machine."""
    stats = _memory_stats(device)
    if "bytes_limit" in stats:
        return int(stats["bytes_limit"])
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):  # not available on every system
        return FALLBACK_MEMORY


def training_bytes(config: ModelConfig, itemsize: int = 4) -> int:
    """Return an upper estimate of the bytes per spectrum when the LAMOST tower trains.

    All blocks keep their activations for the backward pass, which adds the gradients of one block.
    """
    return (config.specformer.num_layers + 2) * activation_bytes(config, itemsize)


def activation_bytes(config: ModelConfig, itemsize: int = 4) -> int:
    """Return an upper estimate of the bytes per spectrum in a forward pass of the LAMOST tower."""
    tower = config.specformer
    residual = 2 * 4 * tower.dim  # float32, before and after the block
    layer = itemsize * (5 * tower.dim + 2 * tower.mlp_dim)  # norm, q, k, v, attended; before and after GELU
    weights = (4 + itemsize) * tower.num_heads * tower.num_tokens
    return tower.num_tokens * (residual + layer + weights)


def pad_rows(array: AnyArray, size: int) -> AnyArray:
    """Return an array (n, ...) with rows of zeros appended up to `size` rows."""
    return np.pad(array, [(0, size - len(array))] + [(0, 0)] * (array.ndim - 1))


def _memory_stats(device: jax.Device | None) -> dict[str, int]:
    """Return the memory statistics of a device, empty for one that reports none, such as a CPU."""
    return (device or jax.local_devices()[0]).memory_stats() or {}
