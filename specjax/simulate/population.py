"""Populations of stars to simulate: like the Milky Way, uniform in ranges, or from a table of labels.

A random star is drawn again until its labels lie inside the domain of the emulator. Star k of a seed is the
same star whatever else is drawn with it.
"""

import dataclasses
import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np
from scipy.special import ndtr, ndtri

from specjax.errors import ConfigError, DataError
from specjax.simulate.labels import LABELS, Domain, as_text, microturbulence
from specjax.surveys.io.tables import floats, id_texts, read_table
from specjax.typing import FloatArray, StrArray

MAX_VELOCITY = 240.0
"""Largest radial velocity in km/s; preprocessing flags spectra with more than 250 km/s."""

_NUMBERS = 9  # random numbers per star
_DIGITS = (2, 4, 4, 4, 4)  # of the labels, so that tables are short
_ATTEMPTS = 1000
_HOPELESS = 20_000  # stars in a row that were outside


@dataclass(frozen=True, eq=False)
class Stars:
    """n stars.

    Attributes:
        labels: (n, 5), see `labels.LABELS`.
        velocity: (n,) radial velocities, km/s.
        id: (n,), None for stars without names.
        rejected: stars drawn outside the domain of the emulator, and drawn again.
    """

    labels: FloatArray
    velocity: FloatArray
    id: StrArray | None = None
    rejected: int = 0


class Population(Protocol):
    """Stars that can be drawn by their number."""

    def describe(self) -> str:
        """Return a phrase for the metadata of the simulated spectra."""

    def draw(self, key: jax.Array, first: int, count: int, domain: Domain) -> Stars:
        """Return the stars `first` to `first + count - 1`; star k depends only on the key and k."""


class _Random:
    """A population of which `sample` turns uniform random numbers (n, 9) into labels and velocities."""

    def sample(self, numbers: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Turn uniform random numbers (n, 9) into labels (n, 5) and velocities (n,)."""
        raise NotImplementedError

    def draw(self, key: jax.Array, first: int, count: int, domain: Domain) -> Stars:
        """Return stars inside the domain, see `Population`.

        Raises:
            DataError: no star, or hardly any, is inside the domain.
        """
        labels, velocity = np.empty((count, len(LABELS))), np.empty(count)
        pending, rejected = np.arange(count), 0
        for attempt in range(_ATTEMPTS):
            numbers = _uniform(key, first, attempt, count)[pending]
            found, speed = self.sample(numbers)
            rounded = [np.round(values, digits) for values, digits in zip(found.T, _DIGITS, strict=True)]
            found = np.stack(rounded, axis=1)
            outside = domain.outside(found)
            inside = outside == ""
            labels[pending[inside]], velocity[pending[inside]] = found[inside], speed[inside]
            pending = pending[~inside]
            rejected += len(pending)
            if not len(pending):
                return Stars(labels, velocity, rejected=rejected)
            if len(pending) == count and rejected > _HOPELESS:
                break
        raise DataError(
            f"hardly any star of this population is inside the grid of the emulator;"
            f" outside in {outside[~inside][0]}"
        )


@dataclass(frozen=True)
class MilkyWay(_Random):
    """Stars of thin disc, thick disc and halo from 3900 to 7200 K: dwarfs, subgiants and red giants.

    Teff and log g follow an analytic isochrone band that depends on [Fe/H]; a quarter of the giants are in
    the red clump. [alpha/Fe] follows `alpha_trend`, the microturbulence its relation. The population is
    plausible rather than fitted to any survey.

    Attributes:
        components: fractions of thin disc, thick disc and halo.
        dwarfs: fraction of main-sequence stars.
        subgiants: fraction of subgiants and turn-off stars; the rest are giants.
    """

    components: tuple[float, float, float] = (0.6, 0.25, 0.15)
    dwarfs: float = 0.45
    subgiants: float = 0.2

    def describe(self) -> str:
        """Return a phrase for the metadata, with the fractions that are not the default ones."""
        words = ["milky_way"]
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value != field.default:
                words.append(f"{field.name} {' '.join(f'{number:g}' for number in np.atleast_1d(value))}")
        return ", ".join(words)

    def sample(self, numbers: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Turn uniform random numbers (n, 9) into labels (n, 5) and velocities (n,)."""
        component = np.searchsorted(np.cumsum(self.components)[:2], numbers[:, 0])
        fe_h = _MEAN_FE_H[component] + _SIGMA_FE_H[component] * ndtri(numbers[:, 1])
        dwarf = numbers[:, 2] < self.dwarfs
        subgiant = ~dwarf & (numbers[:, 2] < self.dwarfs + self.subgiants)
        place, scatter = numbers[:, 3], ndtri(numbers[:, 4])
        low = np.where(dwarf, 3900.0, 5000.0)
        teff = low + place * (_HOTTEST[component] - low)
        sequence = main_sequence(teff) - 0.06 * fe_h
        floor = np.interp(teff, [5000.0, 5600.0, 7300.0], [3.2, 3.5, 3.5])
        logg = np.where(dwarf, sequence + 0.06 * scatter, floor + numbers[:, 4] * (sequence - 0.1 - floor))
        giant_logg = np.where(numbers[:, 5] < 0.25, 2.45 + 0.1 * ndtri(place), 3.6 - 2.9 * place**1.5)
        giant_teff = giant_branch(giant_logg, fe_h) + 80.0 * scatter
        giant = ~dwarf & ~subgiant
        teff, logg = np.where(giant, giant_teff, teff), np.where(giant, giant_logg, logg)
        labels = _completed(teff, logg, fe_h, numbers[:, 6], numbers[:, 7])
        return labels, _truncated_normal(numbers[:, 8], _SIGMA_VELOCITY[component])


# Thin disc, thick disc, halo: [Fe/H], hottest main-sequence stars in K, line-of-sight velocities in km/s.
_MEAN_FE_H, _SIGMA_FE_H = np.array([-0.1, -0.5, -1.5]), np.array([0.2, 0.25, 0.5])
_HOTTEST = np.array([7200.0, 6300.0, 6600.0])
_SIGMA_VELOCITY = np.array([35.0, 60.0, 130.0])


@dataclass(frozen=True)
class Ranges(_Random):
    """Labels and velocities that are uniform in ranges, as far as the emulator's grid reaches.

    Attributes:
        ranges: {label or "velocity": (low, high)}. Without a range, Teff, log g and [Fe/H] cover the grid,
            [alpha/Fe] and the microturbulence follow their relations with scatter, and stars are at rest.
    """

    ranges: Mapping[str, tuple[float, float]]

    def __post_init__(self) -> None:
        for name, (low, high) in self.ranges.items():
            if name not in (*LABELS, "velocity"):
                raise ConfigError(f"no range of {name!r}: it must be one of {', '.join(LABELS)}, velocity")
            if not low <= high:
                raise ConfigError(f"the range of {name} must ascend, not {low:g} to {high:g}")
        if max(map(abs, self.ranges.get("velocity", (0.0,)))) > MAX_VELOCITY:
            raise ConfigError(f"velocities must be within {MAX_VELOCITY:g} km/s")

    @classmethod
    def parse(cls, words: Iterable[str]) -> "Ranges":
        """Read `NAME LOW HIGH` for any number of names, as words or as texts of several words.

        Raises:
            ConfigError: words that are not of this form.
        """
        flat = " ".join(words).split()
        try:
            triples = [flat[k : k + 3] for k in range(0, len(flat), 3)]
            ranges = {name: (float(low), float(high)) for name, low, high in triples}
        except ValueError:
            raise ConfigError(f"ranges are NAME LOW HIGH, such as 'teff 4500 6500', not {flat}") from None
        return cls(ranges)

    def describe(self) -> str:
        """Return a phrase for the metadata."""
        return "uniform in " + ", ".join(f"{name} {a:g} to {b:g}" for name, (a, b) in self.ranges.items())

    def sample(self, numbers: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Turn uniform random numbers (n, 9) into labels (n, 5) and velocities (n,)."""

        def uniform(name: str, column: int, default: tuple[float, float]) -> FloatArray:
            low, high = self.ranges.get(name, default)
            return low + (high - low) * numbers[:, column]

        teff, logg, fe_h = (
            uniform(name, column, whole) for column, (name, whole) in enumerate(_WHOLE_GRID.items())
        )
        labels = _completed(teff, logg, fe_h, numbers[:, 3], numbers[:, 4])
        for column, name in enumerate(LABELS):
            if name in self.ranges:
                labels[:, column] = uniform(name, column, (0.0, 0.0))
        return labels, uniform("velocity", 5, (0.0, 0.0))


_WHOLE_GRID = {"teff": (3900.0, 8000.0), "logg": (0.5, 5.0), "fe_h": (-3.0, 0.5)}


@dataclass(frozen=True, eq=False)
class LabelTable:
    """The stars of a table, in its order; further stars start again from the first.

    Attributes:
        stars: the stars of the table that the emulator can simulate.
        path: the file.
        skipped: stars of the table that it cannot.
    """

    stars: Stars
    path: Path
    skipped: int = 0

    @classmethod
    def read(cls, path: str | Path, domain: Domain, *, skip_outside: bool = False) -> "LabelTable":
        """Read a table with columns teff, logg, fe_h and optionally alpha_fe, vmicro, velocity (km/s), id.

        Without the column, or where a value is missing, alpha_fe follows `alpha_trend` and vmicro its
        relation; without the column, velocities are 0.

        Args:
            path: any table that astropy reads.
            domain: of the emulator.
            skip_outside: leave out stars that are outside the domain.

        Raises:
            DataError: no stars, a column is missing, an id is empty or not unique, or a star is outside the
                domain and not skipped.
        """
        table = read_table(path)
        missing = [name for name in LABELS[:3] if name not in table.colnames]
        if missing:
            raise DataError(f"{path} has no column {', '.join(missing)}: it has {', '.join(table.colnames)}")
        if not len(table):
            raise DataError(f"{path} has no stars")
        columns = {
            name: floats(table[name], f"{path}: column {name}")
            for name in (*LABELS, "velocity")
            if name in table.colnames
        }
        teff, logg, fe_h = (columns[name] for name in LABELS[:3])
        usual = {"alpha_fe": alpha_trend(fe_h), "vmicro": microturbulence(teff, logg, fe_h)}
        for name, relation in usual.items():
            given = columns.get(name, relation)
            columns[name] = np.where(np.isnan(given), relation, given)
        labels = np.stack([columns[name] for name in LABELS], axis=1)
        velocity = columns.get("velocity", np.zeros(len(labels)))
        ids = _unique(path, id_texts(table["id"])) if "id" in table.colnames else None
        inside = domain.contains(labels) & (np.abs(velocity) <= MAX_VELOCITY)
        if (not inside.all() and not skip_outside) or not inside.any():
            raise DataError(_refusal(path, labels, velocity, ids, inside, domain))
        chosen = Stars(labels[inside], velocity[inside], None if ids is None else ids[inside])
        return cls(chosen, Path(path), int((~inside).sum()))

    def __len__(self) -> int:
        return len(self.stars.labels)

    def describe(self) -> str:
        """Return a phrase for the metadata."""
        return f"the stars of {self.path.name}"

    def draw(self, key: jax.Array, first: int, count: int, domain: Domain) -> Stars:
        """Return the stars `first` to `first + count - 1`; repeated stars have ids that end in -2, -3, ...

        If a star of the table already has such an id, there are more hyphens before the number.
        """
        number = np.arange(first, first + count)
        row = number % len(self)
        ids = None
        if self.stars.id is not None:
            turns = (number // len(self) + 1).tolist()
            names = self.stars.id[row].tolist()
            pairs = zip(names, turns, strict=True)
            ids = np.array([f"{name}{self._hyphens}{turn}" if turn > 1 else name for name, turn in pairs])
        return Stars(self.stars.labels[row], self.stars.velocity[row], ids)

    @functools.cached_property
    def _hyphens(self) -> str:
        """As many hyphens as make an id that no star of the table has when a number follows."""
        names = set() if self.stars.id is None else set(self.stars.id.tolist())
        stems = {stem for name in names if (stem := name.rstrip("0123456789")) != name}
        hyphens = "-"
        while any(stem.endswith(hyphens) and stem.removesuffix(hyphens) in names for stem in stems):
            hyphens += "-"
        return hyphens


def alpha_trend(fe_h: FloatArray) -> FloatArray:
    """Return the mean [alpha/Fe] of the grid: 0 at solar [Fe/H] and above, 0.35 below -1, linear between."""
    return np.interp(fe_h, [-1.0, 0.0], [0.35, 0.0])


def _completed(
    teff: FloatArray, logg: FloatArray, fe_h: FloatArray, alpha: FloatArray, micro: FloatArray
) -> FloatArray:
    """Return labels (n, 5) with [alpha/Fe] and microturbulence scattered as those of the emulator's grid."""
    alpha_fe = alpha_trend(fe_h) + _truncated_normal(alpha, 0.1)
    vmicro = microturbulence(teff, logg, fe_h) + _truncated_normal(micro, 0.2, 0.49)
    return np.stack([teff, logg, fe_h, alpha_fe, np.maximum(vmicro, 0.5)], axis=1)


def main_sequence(teff: FloatArray) -> FloatArray:
    """Return log g of solar-metallicity dwarfs, as in the grid of the emulator."""
    return np.interp(
        teff, [3900, 4500, 5000, 5500, 5800, 6500, 7500], [4.75, 4.65, 4.58, 4.5, 4.42, 4.22, 4.05]
    )


def giant_branch(logg: FloatArray, fe_h: FloatArray) -> FloatArray:
    """Return Teff on the giant branch, 200 K per dex hotter at lower [Fe/H], down to -2.2."""
    solar = np.interp(logg, [0.5, 1.0, 2.0, 3.0, 3.6], [3850, 4000, 4480, 4880, 5080])
    return solar - 200.0 * np.clip(fe_h, -2.2, 0.3)


def _truncated_normal(
    uniform: FloatArray, sigma: FloatArray | float, limit: float = MAX_VELOCITY
) -> FloatArray:
    """Turn uniform numbers into normal ones of standard deviation `sigma` within +-`limit`."""
    outside = ndtr(-limit / np.asarray(sigma))
    return np.asarray(sigma * ndtri(outside + uniform * (1 - 2 * outside)))


def _uniform(key: jax.Array, first: int, attempt: int, count: int) -> FloatArray:
    """Return the uniform random numbers (count, 9) of stars from `first` on; never 0 or 1."""
    # From integers, since compiled float32 arithmetic may round a star by where in the batch it is.
    return (np.asarray(_bits(key, first, attempt, count), np.float64) + 0.5) / 2.0**32


@functools.partial(jax.jit, static_argnames="count")
def _bits(key: jax.Array, first: Any, attempt: Any, count: int) -> jax.Array:
    """Return the random bits, uint32 (count, 9), of stars from `first` on."""

    def star(number: jax.Array) -> jax.Array:
        own = jax.random.fold_in(jax.random.fold_in(key, number), attempt)
        return jax.random.bits(own, (_NUMBERS,))

    return jax.vmap(star)(first + jax.numpy.arange(count))


def _unique(path: str | Path, ids: StrArray) -> StrArray:
    """Return the ids of a table, which must not be empty and occur once each."""
    seen: set[str] = set()
    for row, name in enumerate(ids.tolist()):
        if not name:
            raise DataError(f"{path}: row {row} has no id")
        if name in seen:
            raise DataError(f"{path}: the id {name} of row {row} is not unique")
        seen.add(name)
    return ids


def _refusal(
    path: str | Path,
    labels: FloatArray,
    velocity: FloatArray,
    ids: StrArray | None,
    inside: Any,
    domain: Domain,
) -> str:
    """Return the message about the stars of a table that cannot be simulated."""
    star = int(np.flatnonzero(~inside)[0])
    name = f"row {star}" if ids is None else str(ids[star])
    reason = domain.outside(labels[star : star + 1])[0] or f"velocity {velocity[star]:.4g} km/s"
    return (
        f"{path}: {(~inside).sum()} of {len(labels)} stars are outside the grid of the emulator,"
        f" first {name} ({as_text(labels[star])}) in {reason}"
    )
