"""Nested dicts of arrays as flat ones, by the "/"-joined paths that name tensors on disk."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

Arrays = dict[str, Any]  # nested dicts with str keys and array leaves


def flatten(arrays: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield ("a/b/c", leaf) for a nested dict, in sorted order, and ("a/b/", None) for an empty dict."""
    if not arrays and prefix:
        yield prefix, None
    for key in sorted(arrays):
        if not isinstance(key, str) or "/" in key or not key:
            raise ValueError(f"cannot name a tensor by the key {key!r}")
        value = arrays[key]
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}/")
        else:
            yield f"{prefix}{key}", value


def unflatten(items: Iterable[tuple[str, Any]]) -> Arrays:
    """Rebuild the nested dict that `flatten` took apart."""
    tree: Arrays = {}
    for name, value in items:
        *parents, last = name.split("/")
        node = tree
        for key in parents:
            node = node.setdefault(key, {})
        if last:
            node[last] = value
    return tree
