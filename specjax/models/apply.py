"""Apply a module to its variables, typed as what our modules return.

Flax types `Module.apply` as an output or a pair of output and mutated variables; which one it is depends on
the arguments of the call.
"""

from collections.abc import Mapping
from typing import Any, cast

import flax.linen as nn
import jax


def apply(module: nn.Module, variables: Mapping[str, Any], *args: Any, **options: Any) -> jax.Array:
    """Return the output of a module that changes none of its variables; arguments as `Module.apply`."""
    return cast(jax.Array, module.apply(variables, *args, **options))
