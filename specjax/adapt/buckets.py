"""Sizes that programs are compiled for, so that other numbers of stars and seeds find them compiled.

Stars are padded to the next size of a coarse ladder; padding has weight 0 or is never looked up. Seeds train
in groups of at most a fixed number, since all that concerns a seed is independent of the others.
"""

import jax

MIN_STARS = 16
CPU_SEEDS = 4
"""Seeds that train together on each CPU device; more of them take longer per seed."""

ACCELERATOR_SEEDS = 16
"""Seeds that train together on each accelerator."""


def padded(count: int) -> int:
    """Return the next of 16, 32, 48, 64, 96, 128, 192, 256, ...: at most half as many again above 64."""
    size = MIN_STARS
    while size < count:
        power = 1 << (size.bit_length() - 1)
        size += MIN_STARS if size < 4 * MIN_STARS else power // 2
    return size


def seed_groups(count: int) -> list[tuple[slice, int]]:
    """Cut `count` seeds into groups: the seeds of each, and to how many they are padded.

    All but the last are as large as the devices of this process allow; the last is padded to a power of two
    or, on several devices, at least to their number.
    """
    per_device = CPU_SEEDS if jax.default_backend() == "cpu" else ACCELERATOR_SEEDS
    devices = jax.local_device_count()
    most = per_device * devices
    groups = []
    for start in range(0, count, most):
        left = min(count - start, most)
        size = min(max(1 << (left - 1).bit_length(), devices), most)
        groups.append((slice(start, start + left), size))
    return groups
