"""What the processes of a run tell each other: arrays, and whether they have the same options and files.

Every process must call these functions in the same order.
"""

import contextlib
import io
import json
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from specjax.errors import ConfigError
from specjax.progress import Say, silent
from specjax.typing import AnyArray

_CHUNK = 64 << 20  # bytes that a process sends at a time; each device receives one from every process


class DifferentProcessesError(ConfigError):
    """The processes differ; all of them raise it."""


def is_main() -> bool:
    """Return whether this is process 0, which alone prints and writes tables."""
    return jax.process_index() == 0


def say_on_main(say: Say) -> Say:
    """Return `say` in process 0, and a function that discards the lines elsewhere."""
    return say if is_main() else silent


def share(count: int) -> slice:
    """Return the share of this process of `count` items; shares differ by one item at most."""
    mine, all_of_them = jax.process_index(), jax.process_count()
    return slice(*((count * k + all_of_them - 1) // all_of_them for k in (mine, mine + 1)))


def synchronise(name: str) -> None:
    """Wait until all processes are here; `name` must be the same in all of them."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)


@contextlib.contextmanager
def main_first(name: str) -> Iterator[None]:
    """Run the block in process 0 before the others, for what they then find done, such as a download."""
    if not is_main():
        synchronise(name)
    yield
    if is_main():
        synchronise(name)


def exchange(arrays: Mapping[str, AnyArray]) -> list[dict[str, AnyArray]]:
    """Return the arrays of all processes, in their order; names, shapes and types may differ."""
    if jax.process_count() == 1:
        return [dict(arrays)]
    buffer = io.BytesIO()
    renamed: dict[str, Any] = {f"_{name}": array for name, array in arrays.items()}
    np.savez(buffer, **renamed)  # which does not accept an array named "file"
    received = []
    for data in _exchange_bytes(buffer.getvalue()):
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            received.append({name[1:]: file[name] for name in file.files})
    return received


def agree(record: Mapping[str, Mapping[str, Any]]) -> None:
    """Check that all processes have the same record.

    Args:
        record: what must not differ, for JSON: {kind: {name: value}}. Values of the kind "contents" are
            hashes, which an error does not show.

    Raises:
        DifferentProcessesError: in all processes; the message names the first difference.
    """
    if jax.process_count() == 1:
        return
    texts = _exchange_bytes(json.dumps(record).encode())
    first, *others = (json.loads(text) for text in texts)
    for process, other in enumerate(others, start=1):
        if found := _difference(first, other, process):
            raise DifferentProcessesError(found)


def _difference(first: Mapping[str, Any], other: Mapping[str, Any], process: int) -> str:
    """Describe the first difference of a process to process 0; "" if there is none."""
    for kind in {**first, **other}:
        ours, theirs = first.get(kind, {}), other.get(kind, {})
        for name in {**ours, **theirs}:
            if ours.get(name) == theirs.get(name):
                continue
            if kind == "contents":
                return f"{name} differs between process 0 and process {process}"
            return f"{name} is {ours.get(name)} in process 0, but {theirs.get(name)} in process {process}"
    return ""


def _exchange_bytes(data: bytes) -> list[bytes]:
    from jax.experimental import multihost_utils

    # Without 64-bit types, JAX has no integer that holds any length.
    words = np.array(divmod(len(data), 1 << 16), np.int32)
    lengths = [(int(high) << 16) + int(low) for high, low in multihost_utils.process_allgather(words)]
    padded = np.zeros(max(lengths), np.uint8)
    padded[: len(data)] = np.frombuffer(data, np.uint8)
    parts = [
        np.asarray(multihost_utils.process_allgather(padded[start : start + _CHUNK]))
        for start in range(0, len(padded), _CHUNK)
    ]
    whole = np.concatenate(parts, axis=1)
    return [row[:length].tobytes() for row, length in zip(whole, lengths, strict=True)]
