"""Flatten nested dicts of arrays to the "/"-joined paths that name tensors on disk, and back."""

# Not flax.traverse_util: it imports JAX, which converting and verifying files must not need.

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

Arrays = dict[str, Any]  # nested dicts with str keys and array leaves


def flatten(arrays: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield ("a/b/c", leaf) for each leaf of a nested dict, sorted, and ("a/b/", None) for an empty dict."""
    if not arrays and prefix:
        yield prefix, None
    for key in sorted(arrays):
        if not isinstance(key, str) or "/" in key or not key:
            raise ValueError(f"the key {key!r} cannot be part of the name of a tensor")
        value = arrays[key]
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}/")
        else:
            yield f"{prefix}{key}", value


def unflatten(items: Iterable[tuple[str, Any]]) -> Arrays:
    """Rebuild a nested dict from its flattened items; the inverse of `flatten`."""
    tree: Arrays = {}
    for name, value in items:
        *parents, last = name.split("/")
        node = tree
        for key in parents:
            node = node.setdefault(key, {})
        if last:
            node[last] = value
    return tree
