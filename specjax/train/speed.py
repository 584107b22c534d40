"""What a device can do and what a program asks of it, to tell how much of the device is used."""

import math
import time
from typing import Any

import jax
import jax.numpy as jnp


def matrix_peak(dtype: str, repeats: int = 5) -> float:
    """Measure the FLOP/s of a large square matrix product, the best of several; about a second.

    Args:
        dtype: of the factors: "float32", at full precision (never TF32), or "bfloat16".
        repeats: calls that are timed.
    """
    size = 2048 if jax.default_backend() == "cpu" else 8192
    matrix, multiply = jnp.ones((size, size), dtype), jax.jit(_square)
    multiply(matrix).block_until_ready()
    return 2.0 * size**3 / min(_seconds(multiply, matrix) for _ in range(repeats))


def _square(matrix: jax.Array) -> jax.Array:
    return jnp.matmul(matrix, matrix, precision="highest")


def _seconds(call: Any, *arguments: jax.Array) -> float:
    start = time.perf_counter()
    jax.block_until_ready(call(*arguments))
    return time.perf_counter() - start


def program_flops(program: Any, *arguments: Any) -> float:
    """Return the floating-point operations of one call of a jitted program, as XLA counts them.

    The count is that of the program before it is divided among devices. What is computed twice to save memory
    counts twice. A loop counts as one of its turns. NaN if XLA does not know.
    """
    cost = program.lower(*arguments).cost_analysis()
    flops = cost.get("flops", 0.0) if isinstance(cost, dict) else 0.0
    return float(flops) if flops > 0 else math.nan
