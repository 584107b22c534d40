"""A typed `Module.apply`.

Flax types the result of `Module.apply` as an output or a pair of output and mutated variables, depending on
the arguments of the call.
"""

from collections.abc import Mapping
from typing import Any, cast

import flax.linen as nn
import jax


def apply(module: nn.Module, variables: Mapping[str, Any], *args: Any, **options: Any) -> jax.Array:
    """Return the output of a module that mutates no variables; arguments as in `Module.apply`."""
    return cast(jax.Array, module.apply(variables, *args, **options))
