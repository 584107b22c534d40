"""Star names across catalogues: one spelling, and which rows of two lists are the same star."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import numpy as np

from specjax.typing import IntArray


def normalise_star_name(name: str) -> str:
    """One spelling of a star's name: upper case, no spaces, no leading zeros in a catalogue number.

    "HD 025825         Cl" (a cluster member in MILES), "HD025825" and "hd 25825" all give "HD25825". A
    component letter or a letter of a variable is kept: "HD001326B" gives "HD1326B".
    """
    compact = re.sub(r"\s+cl$", "", name.strip(), flags=re.IGNORECASE)
    compact = re.sub(r"[\s_]+", "", compact).upper()
    # Only a number right after the catalogue's letters loses its zeros: those in BD+002058 are part of the
    # zone.
    return re.sub(r"^([A-Z]+)0+(?=\d)", r"\1", compact)


def crossmatch(left: Sequence[str], right: Sequence[str]) -> tuple[IntArray, IntArray]:
    """Row pairs (i, j) of the same star by normalised name, every pair where a star occurs more than once."""
    rows: dict[str, list[int]] = {}
    for j, name in enumerate(right):
        rows.setdefault(normalise_star_name(name), []).append(j)
    pairs = [(i, j) for i, name in enumerate(left) for j in rows.get(normalise_star_name(name), [])]
    table = np.asarray(pairs, dtype=np.int64).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def common_stars(left: Iterable[str], right: Iterable[str]) -> set[str]:
    """The normalised names that occur in both."""
    return {normalise_star_name(name) for name in left} & {normalise_star_name(name) for name in right}
