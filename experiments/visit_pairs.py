"""Whether two visits of one star are closest to each other in embedding: a check that needs no labels.

    python -m experiments.visit_pairs --spectra FOLDER --visits visits.csv

The table has a row for each spectrum with the columns file, its name in the folder, and star, the same for
all visits of one. For each spectrum the nearest of all others is sought, by the angle between embeddings
from which the mean over the spectra was taken out. Expect of the shipped model, for 20 LAMOST DR8 stars with
two visits each of S/N 31 to 159: 31 of 40 projected vectors and 32 of 40 mean tokens, where of the pixels
themselves it is 20; by chance it would be 1.
"""

import dataclasses
from pathlib import Path

import numpy as np
from astropy.table import Table
from numpy.typing import NDArray

from specjax import load, read
from specjax.errors import DataError
from specjax.preprocess import to_lamost
from specjax.spectra import Spectra
from specjax.surveys.io.sniff import stem
from specjax.typing import BoolArray, IntArray


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """What can be set from the command line."""

    spectra: Path
    """A survey's files."""
    visits: Path
    """A table with the columns file and star."""
    model: str = "mini"
    """A model folder, or "mini"."""


def main(config: Config) -> dict[str, float]:
    """Print and return the share of spectra whose nearest is another visit of the same star."""
    spectra = to_lamost(read(config.spectra))
    star = find_stars(spectra, Table.read(config.visits))
    spectra, star = spectra[star >= 0], star[star >= 0]
    model = load(config.model)
    ivar = spectra.ivar if spectra.has_ivar else None
    flux, valid = model.prepare(spectra.flux, "lamost", ivar=ivar, mask=spectra.mask)
    features = {
        "projected": model.embed(spectra.flux, ivar=ivar, mask=spectra.mask),
        "mean token": model.mean_token(spectra.flux, ivar=ivar, mask=spectra.mask),
        "pixels": np.where(valid, flux, 1.0),
    }
    rates = {}
    for name, vectors in features.items():
        paired = nearest_is_partner(vectors, star)
        rates[name] = float(paired.mean())
        stars = set(star.tolist())
        both = len(stars - set(star[~paired].tolist()))
        print(f"{name:<12} {paired.sum()} of {len(star)} spectra, all visits of {both} of {len(stars)} stars")
    return rates


def find_stars(spectra: Spectra, visits: Table) -> IntArray:
    """Return (n,) numbers of the stars of the spectra, -1 where the table does not have them.

    Raises:
        DataError: columns that are not there, or a table of other files.
    """
    missing = {"file", "star"} - set(visits.colnames)
    if missing:
        raise DataError(f"the table of visits has no column {', '.join(sorted(missing))}")
    stars = {name: k for k, name in enumerate(dict.fromkeys(map(str, visits["star"])))}
    star_of = {stem(Path(str(row["file"]))): stars[str(row["star"])] for row in visits}
    star = np.array([star_of.get(name, -1) for name in spectra.id.tolist()])
    if (star < 0).all():
        raise DataError("the table of visits names none of the spectra")
    return star


def nearest_is_partner(vectors: NDArray[np.floating], star: IntArray) -> BoolArray:
    """Return (n,) whether the nearest other of (n, d) vectors, by angle, is of the same star."""
    unit = vectors - vectors.mean(axis=0)
    unit = unit / np.linalg.norm(unit, axis=1, keepdims=True)
    likeness = unit @ unit.T
    np.fill_diagonal(likeness, -np.inf)
    return np.asarray(star[likeness.argmax(axis=1)] == star)


if __name__ == "__main__":
    import tyro

    from specjax.cli import run

    run(lambda: main(tyro.cli(Config, description=__doc__)))
