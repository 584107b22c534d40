"""Who trains, validates, tests and stays unlabelled, for every seed, as columns of a table of labels.

The paper's sample (arXiv:2507.20972): of 495 labelled stars 89 train, 9 validate and the rest is tested on;
164 other spectra of S/N above 50 stay unlabelled, for LoRA1 and LoRA3.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from astropy.table import Table

from specjax.adapt.target import Splits, Target
from specjax.errors import ConfigError, DataError
from specjax.surveys.io.tables import floats, id_texts, read_table, write_table
from specjax.typing import BoolArray, FloatArray, IntArray, StrArray

TRAIN, VALIDATE, TEST, UNLABELLED = "train", "validate", "test", "unlabelled"

_COLUMN = re.compile(r"split_(\d+)")
_STRATA = 10  # groups of stars of like metallicity, of one size


@dataclass(frozen=True, kw_only=True)
class SplitConfig:
    """Sizes of the parts; the defaults are the paper's.

    Attributes:
      label: the label that a star must have to train, validate or be tested on.
      train, validate: stars of each seed.
      test: stars of each seed; all that are left where None.
      unlabelled: spectra that stay unlabelled, the same for all seeds.
      min_snr: S/N that these must exceed; 0 takes any.
      seeds: how many splits.
      seed: the first of the seeds; other numbers give other splits.
      stratify: a column, usually fe_h, of which every part shall have the same distribution; None for chance.
    """

    label: str = "fe_h"
    train: int = 89
    validate: int = 9
    test: int | None = None
    unlabelled: int = 164
    min_snr: float = 50.0
    seeds: int = 16
    seed: int = 0
    stratify: str | None = None

    def __post_init__(self) -> None:
        """Refuse sizes that mean nothing: ConfigError."""
        if self.train < 10:
            raise ConfigError(f"{self.train} training stars are too few: at least 10 are needed")
        if self.validate < 0 or self.unlabelled < 0 or self.seeds < 1 or self.seed < 0:
            raise ConfigError("numbers of stars and seeds must be positive")
        if self.test is not None and self.test < 1:
            raise ConfigError("at least one star must be left to test on")


@dataclass(frozen=True, kw_only=True, eq=False)
class Roles:
    """The part that each spectrum has in each split.

    Attributes:
      id: (n,) strings.
      role: (n, S) "train", "validate", "test", "unlabelled" or "".
    """

    id: StrArray
    role: StrArray

    @property
    def seeds(self) -> int:
        """How many splits there are."""
        return self.role.shape[1]

    def labelled(self, ids: Sequence[str] | StrArray) -> BoolArray:
        """(m,) whether spectra of these ids train, validate or are tested on in any split."""
        chosen = self.id[np.isin(self.role, (TRAIN, VALIDATE, TEST)).any(axis=1)]
        return np.isin(np.asarray(ids), chosen)


def draw_roles(
    labelled: BoolArray, spare: BoolArray, config: SplitConfig, values: FloatArray | None = None
) -> StrArray:
    """Draw the part of each of n spectra in each split.

    The split of a seed depends on neither the number of seeds nor the unlabelled ones.

    Args:
      labelled: (n,) may train, validate or test.
      spare: (n,) may stay unlabelled; disjoint from `labelled`.
      config: sizes.
      values: (n,) what to stratify by; None for chance alone.

    Returns:
      (n, seeds) roles, "" for those that have none.

    Raises:
      DataError: too few stars.
    """
    rows, spares = np.flatnonzero(labelled), np.flatnonzero(spare)
    least = config.train + config.validate + (config.test or 1)
    if least > len(rows):
        raise DataError(
            f"{len(rows)} labelled stars cannot give {config.train} to train, {config.validate} to validate"
            f" and {config.test or 'some'} to test"
        )
    if config.unlabelled > len(spares):
        raise DataError(f"{config.unlabelled} unlabelled spectra are asked for, and there are {len(spares)}")
    role = np.full((len(labelled), config.seeds), "", dtype="<U10")
    kept = np.random.default_rng([config.seed, 1]).permutation(spares)[: config.unlabelled]
    role[kept] = UNLABELLED
    ends = np.cumsum([config.train, config.validate])
    stop = len(rows) if config.test is None else int(ends[1]) + config.test
    for column in range(config.seeds):
        rng = np.random.default_rng([config.seed + column, 0])
        order = rows[rng.permutation(len(rows)) if values is None else _evenly(values[rows], rng)]
        role[order[: ends[0]], column] = TRAIN
        role[order[ends[0] : ends[1]], column] = VALIDATE
        role[order[ends[1] : stop], column] = TEST
    return role


def split_table(table: Table, config: SplitConfig) -> Table:
    """The table with columns split_0, split_1, ..., one a seed, of what each spectrum is for.

    A labelled star must have the label and, where `table` has these columns of `label_spectra`, no flag. An
    unlabelled spectrum must have no label, no flag, an S/N above `min_snr`, and not be another spectrum of a
    labelled star (`duplicate_of`).

    Raises:
      DataError: columns that are missing, too few stars, or a star to stratify without a value.
    """
    _require(table, ["id", config.label, *([config.stratify] if config.stratify else [])])
    has = np.isfinite(floats(table[config.label], f"column {config.label}"))
    trusted = _texts(table, "flag") == ""
    spare = ~has & trusted & (_texts(table, "duplicate_of") == "")
    if config.unlabelled and config.min_snr > 0:
        _require(table, ["snr"])
        spare &= floats(table["snr"], "column snr") > config.min_snr  # NaN is not
    labelled = has & trusted
    values = None
    if config.stratify:
        values = floats(table[config.stratify], f"column {config.stratify}")
        labelled &= np.isfinite(values)
    role = draw_roles(labelled, spare, config, values)
    result = Table(table, copy=True)
    for column in [name for name in result.colnames if _COLUMN.fullmatch(name)]:
        result.remove_column(column)
    for column in range(config.seeds):
        result[f"split_{column}"] = role[:, column]
    sizes = {name: int((role[:, 0] == name).sum()) for name in (TRAIN, VALIDATE, TEST, UNLABELLED)}
    result.meta.update({f"split_{name}": count for name, count in sizes.items()})
    result.meta.update(split_seeds=config.seeds, split_seed=config.seed, stratify=config.stratify or "")
    return result


def split_file(labels: Path, out: Path, config: SplitConfig, *, say: Callable[[str], None] = print) -> Table:
    """`split_table` from a file to a file; `say` takes the sizes.

    Raises:
      SpecjaxError: one line on what is wrong with the table, or too few stars.
    """
    table = split_table(read_table(labels), config)
    table["id"] = id_texts(table["id"])
    write_table(out, {name: table[name] for name in table.colnames}, table.meta)
    sizes = [f"{table.meta[f'split_{part}']} {part}" for part in (TRAIN, VALIDATE, TEST, UNLABELLED)]
    say(f"{config.seeds} splits of {', '.join(sizes)}")
    return table


def read_roles(path: str | Path) -> Roles | None:
    """The columns split_0, split_1, ... of a table of labels; None where it has none.

    Raises:
      DataError: not a table, no ids, or a word that is no role.
    """
    table = read_table(path)
    numbered = sorted((int(found[1]), name) for name in table.colnames if (found := _COLUMN.fullmatch(name)))
    if not numbered:
        return None
    _require(table, ["id"])
    role = np.stack([id_texts(table[name]) for _, name in numbered], axis=1)
    unknown = set(role.ravel().tolist()) - {TRAIN, VALIDATE, TEST, UNLABELLED, ""}
    if unknown:
        raise DataError(
            f"{path}: {min(unknown)!r} in its split columns is not train, validate, test or unlabelled"
        )
    return Roles(id=id_texts(table["id"]), role=role)


def apply_roles(roles: Roles, target: Target) -> tuple[Target, Splits]:
    """The target with the unlabelled spectra that were chosen, and its splits as rows of the labelled ones.

    Raises:
      DataError: a star of the splits is not among the target's labelled ones (it has no spectrum, no label,
        or a flag), or splits of different sizes.
    """
    row_of = {name: row for row, name in enumerate(target.labelled.id.tolist())}
    named = roles.id[roles.labelled(roles.id)]
    absent = [name for name in named.tolist() if name not in row_of]
    if absent:
        why = target.refused.get(absent[0], "no usable spectrum or no label")
        raise DataError(
            f"{target.name}: {len(absent)} of {len(named)} stars of the splits cannot be used, the first "
            f"{absent[0]} ({why}); draw the splits anew from the stars that can"
        )
    parts = {}
    for part in (TRAIN, VALIDATE, TEST):
        chosen = [roles.id[roles.role[:, seed] == part].tolist() for seed in range(roles.seeds)]
        if len({len(names) for names in chosen}) > 1:
            raise DataError(f"{target.name}: the splits differ in how many stars {part}")
        rows = [[row_of[name] for name in names] for names in chosen]
        parts[part] = np.array(rows, dtype=np.int64).reshape(roles.seeds, -1)
    if not parts[TRAIN].size or not parts[TEST].size:
        raise DataError(f"{target.name}: the splits have no stars to train on, or none to test on")
    unlabelled = roles.id[(roles.role == UNLABELLED).any(axis=1)]  # the same for all seeds
    kept = np.flatnonzero(np.isin(target.unlabelled.id, unlabelled))
    return replace(target, unlabelled=target.unlabelled[kept]), Splits(**parts)


def _evenly(values: FloatArray, rng: np.random.Generator) -> IntArray:
    """An order of the rows of which any stretch has stars of all strata of `values` in equal shares.

    Stars are sorted and cut into strata of one size, shuffled within each, and dealt out like cards.
    """
    ranked = np.lexsort((rng.permutation(len(values)), values))  # equal values by chance
    place = np.empty(len(values))
    for stratum in np.array_split(ranked, min(_STRATA, len(values))):
        place[stratum] = (rng.permutation(len(stratum)) + rng.random()) / len(stratum)
    return np.argsort(place, kind="stable")


def _texts(table: Table, name: str) -> StrArray:
    """A column of texts; all "" where the table does not have it."""
    return id_texts(table[name]) if name in table.colnames else np.full(len(table), "")


def _require(table: Table, names: Sequence[str]) -> None:
    missing = [name for name in names if name not in table.colnames]
    if missing:
        raise DataError(
            f"the table of labels has no column {', '.join(missing)}: it has {', '.join(table.colnames)}"
        )
