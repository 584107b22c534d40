"""Array types; shapes, which these types cannot express, are given in docstrings."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
"""Double precision: spectra before they are on the model grid, labels and scores."""

Float32Array = NDArray[np.float32]
"""Single precision: inputs and outputs of the networks."""

BoolArray = NDArray[np.bool_]
IntArray = NDArray[np.int64]
StrArray = NDArray[np.str_]
AnyArray = NDArray[Any]

Tree = Any
"""A pytree, usually nested dicts of JAX arrays: parameters, low-rank factors, a batch."""
