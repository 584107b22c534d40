"""Random splits of labelled stars into training, validation and test stars, one per seed."""

from dataclasses import dataclass, replace

import numpy as np

from specjax.errors import DataError
from specjax.plurals import counted
from specjax.typing import BoolArray, FloatArray, IntArray

MIN_TRAIN = 10
"""Fewest training stars on which cross-validation is meaningful."""

FULL = 100
"""Labelled stars from which on the default numbers of training and validation stars are fixed."""

TRAIN, VALIDATE = 60, 10
"""These numbers; of fewer stars, as many of each hundred."""

FEW_TEST = 30
"""Test stars below which a split is reported as small."""

_WIDTH = 2.0  # of a 95% interval of the scatter, to either side, times the root of the number of stars
_STRATA = 10  # groups of stars of similar label, of equal size


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Splits:
    """Rows of the labelled spectra for S seeds.

    Attributes:
        train: (S, a) rows.
        validate: (S, b) rows.
        test: (S, c) rows.
        seeds: (S,) numbers that all random numbers of a seed derive from; 0 to S - 1 by default.
    """

    train: IntArray
    validate: IntArray
    test: IntArray
    seeds: IntArray | None = None

    def __post_init__(self) -> None:
        if self.seeds is None:
            object.__setattr__(self, "seeds", np.arange(len(self.train)))

    def __len__(self) -> int:
        return len(self.train)

    def __repr__(self) -> str:
        train, validate, test = (rows.shape[1] for rows in (self.train, self.validate, self.test))
        return f"<Splits of {len(self)} seeds: {train} training, {validate} validation and {test} test stars>"

    @property
    def unseen(self) -> IntArray:
        """Training, then validation stars (S, a + b): those that the selection predicts unseen."""
        return np.concatenate([self.train, self.validate], axis=1)

    @property
    def all_equal(self) -> bool:
        """Whether all seeds have the same training and test stars."""
        parts = (np.sort(rows, axis=1) for rows in (self.train, self.test))
        return all(bool((rows == rows[:1]).all()) for rows in parts)

    def repeated(self, seeds: int) -> "Splits":
        """Return the first split for that many seeds, which differ in all other random numbers."""
        rows = {
            name: np.repeat(getattr(self, name)[:1], seeds, axis=0) for name in ("train", "validate", "test")
        }
        first = 0 if self.seeds is None else self.seeds[0]
        return Splits(**rows, seeds=first + np.arange(seeds))

    def cycled(self, count: int) -> "Splits":
        """Return `count` seeds: all of them, then those from the first one on again."""
        return self[np.arange(count) % len(self)]

    def of_test_stars(self, values: FloatArray) -> FloatArray:
        """Return those of the values (S, n) or (n,) of all stars that belong to test stars: (S, c)."""
        whole = np.broadcast_to(values, (len(self), np.shape(values)[-1]))
        tested: FloatArray = np.take_along_axis(whole, self.test, axis=1)
        return tested

    def to_all_stars(self, tested: FloatArray, n: int) -> FloatArray:
        """Place the values (S, c) of test stars among those of all n stars: (S, n), else NaN."""
        whole = np.full((len(self), n), np.nan)
        np.put_along_axis(whole, self.test, tested, axis=1)
        return whole

    def __getitem__(self, seeds: slice | IntArray) -> "Splits":
        return replace(self, **{name: rows[seeds] for name, rows in self.__dict__.items()})


def default_sizes(n: int, train: int | None = None, validate: int | None = None) -> tuple[int, int]:
    """Return the numbers of training and validation stars of n labelled ones, those that are None by default.

    From 100 stars on they are 60 and 10, below 60% and 10% of them, but not fewer than `MIN_TRAIN` training
    stars. Validation stars give way to a test star.

    >>> default_sizes(495), default_sizes(76), default_sizes(12), default_sizes(76, train=40)
    ((60, 10), (46, 8), (10, 1), (40, 8))
    """
    share = min(n, FULL) / FULL
    if train is None:
        train = max(round(TRAIN * share), MIN_TRAIN)
    if validate is None:
        validate = max(min(round(VALIDATE * share), n - train - 1), 0)
    return train, validate


def describe_sizes(splits: Splits) -> str:
    """Describe the parts of a split, and how well a scatter will be known where few stars are tested.

    Over all seeds N different stars are tested. With 16 seeds, and residuals of Student's t with 5 degrees of
    freedom, the 95% interval of the scatter of one configuration is about 2 / sqrt(N) of it to either side
    (see docs/adaptation.md).
    """
    train, validate, test = (rows.shape[1] for rows in (splits.train, splits.validate, splits.test))
    text = f"{train} training, {validate} validation and {counted(test, 'test star')} per split"
    if test >= FEW_TEST:
        return text
    width = round(100 * _WIDTH / np.sqrt(len(np.unique(splits.test))), -1)
    return (
        f"{text}: few to test, so that the 95% interval of a scatter will be about {width:.0f}% of it to"
        " either side; more labelled stars would narrow it"
    )


def draw_splits(
    n: int,
    *,
    seeds: int,
    train: int,
    validate: int,
    test: int | None = None,
    first_seed: int = 0,
    stratify: FloatArray | None = None,
    among: BoolArray | None = None,
) -> Splits:
    """Split n stars at random, once per seed; the split of a seed does not depend on the number of seeds.

    Args:
        n: stars.
        seeds: splits to draw.
        train: training stars in each split.
        validate: validation stars in each split.
        test: test stars in each split; all remaining ones by default.
        first_seed: the number of the first seed.
        stratify: (n,) values, such as [Fe/H], whose distribution is to be the same in all parts.
        among: (n,) True for the stars to split, in the order that is drawn for all n; rows of the result are
            counted among these only.

    Raises:
        DataError: too few stars, or invalid sizes.
    """
    if seeds < 1 or validate < 0:
        raise DataError(f"cannot draw {seeds} seeds with {validate} validation stars")
    if train < MIN_TRAIN:
        raise DataError(f"{train} training stars are too few: at least {MIN_TRAIN} are needed")
    count = n if among is None else int(among.sum())
    if train + validate + (test or 1) > count:
        tested = "at least one test star" if test is None else f"{test} test stars"
        raise DataError(
            f"{count} labelled stars are too few for {train} training, {validate} validation and {tested}"
        )
    order = np.stack([_order(n, seed, stratify) for seed in range(first_seed, first_seed + seeds)])
    if among is not None:
        order = (np.cumsum(among) - 1)[order[among[order]].reshape(seeds, count)]
    end = train + validate
    return Splits(
        train=order[:, :train],
        validate=order[:, train:end],
        test=order[:, end : count if test is None else end + test],
        seeds=np.arange(first_seed, first_seed + seeds),
    )


def _order(n: int, seed: int, stratify: FloatArray | None) -> IntArray:
    rng = np.random.default_rng([seed, n])
    return rng.permutation(n) if stratify is None else _stratified_order(stratify, rng)


def _stratified_order(values: FloatArray, rng: np.random.Generator) -> IntArray:
    """Return an order of the rows in which any stretch has equal shares of all strata of `values`.

    Stars are sorted and cut into strata of equal size, shuffled within each, and dealt out in turn.
    """
    ranked = np.lexsort((rng.permutation(len(values)), values))  # ties in random order
    place = np.empty(len(values))
    for stratum in np.array_split(ranked, min(_STRATA, len(values))):
        place[stratum] = (rng.permutation(len(stratum)) + rng.random()) / len(stratum)
    return np.argsort(place, kind="stable")
