"""Damage to files: single flipped bits, and edits such as a broken disk or transfer makes."""

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.random import Generator

from benchmarks.reliability.kinds import Content, Kind
from specjax.errors import SpecjaxError
from specjax.npz import NpzError
from specjax.surveys.io.many import collecting

Edit = Callable[[bytes, Generator], bytes]

OUTCOMES = ("refused", "rows lost", "unharmed", "silent", "crash")


def flip(data: bytes, rng: Generator) -> bytes:
    """Flip one bit."""
    damaged = bytearray(data)
    damaged[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
    return bytes(damaged)


def edit(data: bytes, rng: Generator) -> bytes:
    """Truncate, or overwrite, remove, insert or repeat a stretch of up to 4 kB."""
    at, size = int(rng.integers(len(data))), int(2 ** rng.uniform(0, 12))
    stretch = data[at : at + size]
    noise = rng.bytes(len(stretch))
    choices = [
        data[:at],
        data[:at] + noise + data[at + size :],
        data[:at] + bytes(len(stretch)) + data[at + size :],
        data[:at] + data[at + size :],
        data[:at] + noise + data[at:],
        data[:at] + stretch + data[at:],
    ]
    return choices[int(rng.integers(len(choices)))]


def campaign(kind: Kind, change: Edit, count: int, rng: Generator) -> dict[str, int]:
    """Damage an example `count` times and count the outcomes, see `OUTCOMES`.

    "rows lost" means that the others were read and the loss was reported, "unharmed" that everything was
    right because nothing that is read was hit, "silent" that something else was read without a word, and
    "crash" an exception other than an error of specjax in one line.
    """
    right = kind.read()
    counts = dict.fromkeys(OUTCOMES, 0)
    counts.update(Counter(_outcome(kind, right) for _ in _damaged(kind.files, change, count, rng)))
    return counts


def _damaged(files: list[Path], change: Edit, count: int, rng: Generator) -> Iterator[Path]:
    """Damage files one after the other, each as often as its size suggests; restore each afterwards."""
    sizes = np.array([file.stat().st_size for file in files], dtype=float)
    for index in rng.choice(len(files), count, p=sizes / sizes.sum()).tolist():
        file = files[index]
        data = file.read_bytes()
        damaged = change(data, rng)
        if damaged == data:
            continue
        file.write_bytes(damaged)
        try:
            yield file
        finally:
            file.write_bytes(data)


def _outcome(kind: Kind, right: Content) -> str:
    try:
        with collecting() as reasons:
            found = kind.read()
    except (SpecjaxError, NpzError) as error:
        return "crash" if "\n" in str(error) else "refused"
    except Exception:
        return "crash"
    names = found.keys() if reasons else found.keys() | right.keys()
    same = all(name in found and name in right and _equal(found[name], right[name]) for name in names)
    return "silent" if not same else "rows lost" if reasons else "unharmed"


def _equal(one: object, other: object) -> bool:
    one, other = np.asarray(one), np.asarray(other)
    return one.dtype == other.dtype and np.array_equal(one, other, equal_nan=one.dtype.kind == "f")
