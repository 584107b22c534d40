"""Normalise star names and match them between catalogues."""

import re
from collections.abc import Iterable, Sequence

import numpy as np

from specjax.typing import IntArray


def normalise_star_name(name: str) -> str:
    """Return a name in upper case, without spaces or leading zeros of a catalogue number.

    The "Cl" of cluster members in MILES is removed; the letter of a component or variable is kept.

    >>> normalise_star_name("HD 025825         Cl"), normalise_star_name("hd001326B")
    ('HD25825', 'HD1326B')
    """
    compact = re.sub(r"\s+cl$", "", name.strip(), flags=re.IGNORECASE)
    compact = re.sub(r"[\s_]+", "", compact).upper()
    # Only zeros right after the catalogue's letters are removed: those in BD+002058 belong to the zone.
    return re.sub(r"^([A-Z]+)0+(?=\d)", r"\1", compact)


def crossmatch(left: Sequence[str], right: Sequence[str]) -> tuple[IntArray, IntArray]:
    """Return all pairs of rows, (k,) on the left and (k,) on the right, with the same normalised name."""
    rows: dict[str, list[int]] = {}
    for j, name in enumerate(right):
        rows.setdefault(normalise_star_name(name), []).append(j)
    pairs = [(i, j) for i, name in enumerate(left) for j in rows.get(normalise_star_name(name), [])]
    table = np.asarray(pairs, dtype=np.int64).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def common_stars(left: Iterable[str], right: Iterable[str]) -> set[str]:
    """Return the normalised names that occur in both lists."""
    return {normalise_star_name(name) for name in left} & {normalise_star_name(name) for name in right}
