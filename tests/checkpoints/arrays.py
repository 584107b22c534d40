"""A configuration and arrays to save, and an exact comparison of trees."""

import chex
import jax.numpy as jnp
import numpy as np

CONFIG = {"name": "mini", "specformer": {"embed_dim": 8, "statistics": ["mean", "std"]}, "decoder": None}


def some_arrays(seed=0):
    rng = np.random.default_rng(seed)
    return {
        "params": {
            "lamost": {"kernel": jnp.asarray(rng.normal(size=(4, 3)), jnp.float32), "bias": jnp.zeros(3)},
            "scale": jnp.float32(2.0),
        },
        "batch_stats": {},
        "fill": {"mean": rng.normal(size=5), "count": np.arange(3)},
    }


def assert_same(a, b):
    """Compare trees exactly: structure, shapes, types and values."""
    chex.assert_trees_all_equal_shapes_and_dtypes(a, b)
    chex.assert_trees_all_equal(a, b)
