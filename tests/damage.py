"""Damage to files, bit by bit, and the check that none of it goes unnoticed."""

from collections import Counter

import numpy as np

from specjax.errors import SpecjaxError
from specjax.surveys.io.many import collecting


def flip(data, bit):
    """Return bytes with one bit changed."""
    damaged = bytearray(data)
    damaged[bit // 8] ^= 1 << bit % 8
    return bytes(damaged)


def some_bits(data, count, seed=0):
    """Return random positions of bits, half of them near the ends, with what describes the rest."""
    rng, size = np.random.default_rng(seed), 8 * len(data)
    ends = rng.integers(0, min(8 * 4096, size), count // 2) * rng.choice([1, -1], count // 2) % size
    return np.concatenate([rng.integers(0, size, count - count // 2), ends]).tolist()


def same_spectra(found, expected):
    """Return whether spectra are bit for bit those of the same ids."""
    rows = [expected.id.tolist().index(name) for name in found.id.tolist() if name in expected.id]
    if len(rows) != len(found) or found.meta.keys() != expected.meta.keys():
        return False
    kept = expected[rows]
    alike = [
        np.array_equal(getattr(found, n), getattr(kept, n)) for n in ("flux", "ivar", "mask", "wavelength")
    ]
    columns = [(found.meta[name], kept.meta[name]) for name in kept.meta]
    alike += [np.array_equal(a, b, equal_nan=a.dtype.kind == "f") for a, b in columns]
    how = [(s.medium, s.survey, s.has_ivar, s.prepared) for s in (found, kept)]
    return all(alike) and how[0] == how[1]


def outcomes(path, read, same, bits):
    """Flip each of some bits of a file and read it; count what happens, and list the bits that deceive.

    Args:
        path: the file, unchanged at the end.
        read: reads it.
        same: whether what was read is right.
        bits: positions.

    Returns:
        (number of "refused", "reported" and "unharmed", positions that changed the result without a word).
    """
    data, counts, silent = path.read_bytes(), Counter(), []
    for bit in bits:
        path.write_bytes(flip(data, bit))
        try:
            with collecting() as reasons:
                found = read(path)
        except SpecjaxError as error:
            counts["refused" if "\n" not in str(error) else "refused in several lines"] += 1
            continue
        counts["reported" if reasons else "unharmed"] += 1
        if not same(found):
            silent.append(bit)
    path.write_bytes(data)
    return counts, silent
