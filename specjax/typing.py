"""The array types of specjax; the shapes, which a type cannot say, are in the docstrings."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
"""Double precision: everything before the model grid, labels and scores."""

Float32Array = NDArray[np.float32]
"""Single precision: what the networks read and return."""

BoolArray = NDArray[np.bool_]
IntArray = NDArray[np.int64]
StrArray = NDArray[np.str_]
AnyArray = NDArray[Any]

Tree = Any
"""A pytree, usually nested dicts of JAX arrays: parameters, low-rank factors, a batch."""
