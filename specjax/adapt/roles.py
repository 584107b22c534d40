"""Splits as columns of a table of labels: the role of each spectrum for each seed.

The paper's sample (arXiv:2507.20972) has 495 labelled stars, of which 89 train, 9 validate and 396 test, and
164 unlabelled spectra with S/N above 50 for LoRA1 and LoRA3.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from astropy.table import Table

from specjax.adapt.splits import MIN_TRAIN, Splits, draw_splits
from specjax.adapt.target import Target
from specjax.catalogues.label_units import to_own_unit
from specjax.errors import ConfigError, DataError
from specjax.flags import Flag
from specjax.overwrite import check_replaceable
from specjax.plurals import counted
from specjax.progress import Say, silent
from specjax.surveys.io.tables import flag_texts, floats, id_texts, read_table, write_table, written_format
from specjax.typing import BoolArray, FloatArray, StrArray
from specjax.units import label_unit

TRAIN, VALIDATE, TEST, UNLABELLED = "train", "validate", "test", "unlabelled"

PAPER_UNLABELLED = 164

_COLUMN = re.compile(r"split_(\d+)")


@dataclass(frozen=True, kw_only=True)
class SplitConfig:
    """Sizes of the parts; the defaults are the paper's.

    Attributes:
        label: the label that training, validation and test stars must have.
        train: training stars per seed.
        validate: validation stars per seed.
        test: test stars per seed; all remaining ones if None.
        unlabelled: spectra that stay unlabelled, the same for all seeds; None takes the paper's 164, or all
            if there are fewer.
        min_snr: S/N that these must exceed; 0 accepts any.
        seeds: splits.
        seed: number of the first seed.
        stratify: a column, usually fe_h, whose distribution is to be the same in all parts; None draws at
            random.

    Raises:
        ConfigError: too few training stars, a negative number, or no seeds or test stars.
    """

    label: str = "fe_h"
    train: int = 89
    validate: int = 9
    test: int | None = None
    unlabelled: int | None = None
    min_snr: float = 50.0
    seeds: int = 16
    seed: int = 0
    stratify: str | None = None

    def __post_init__(self) -> None:
        if self.train < MIN_TRAIN:
            raise ConfigError(f"{self.train} training stars are too few: at least {MIN_TRAIN} are needed")
        if self.validate < 0 or (self.unlabelled or 0) < 0 or self.seeds < 1 or self.seed < 0:
            raise ConfigError("numbers of stars and seeds must be positive")
        if self.test is not None and self.test < 1:
            raise ConfigError("at least one test star is needed")


@dataclass(frozen=True, kw_only=True, eq=False)
class Roles:
    """The role of each spectrum in each split.

    Attributes:
        id: (n,) strings.
        role: (n, S) "train", "validate", "test", "unlabelled" or "".
    """

    id: StrArray
    role: StrArray

    @property
    def seeds(self) -> int:
        """The number of splits."""
        return int(self.role.shape[1])

    def labelled(self, ids: Sequence[str] | StrArray) -> BoolArray:
        """Return (m,) bool, True for ids of training, validation or test stars of any split."""
        chosen = self.id[np.isin(self.role, (TRAIN, VALIDATE, TEST)).any(axis=1)]
        return np.isin(np.asarray(ids), chosen)


def draw_roles(
    labelled: BoolArray, spare: BoolArray, config: SplitConfig, values: FloatArray | None = None
) -> StrArray:
    """Draw the role of each of n spectra in each split.

    Args:
        labelled: (n,) spectra that may be training, validation or test stars.
        spare: (n,) spectra that may stay unlabelled; disjoint from `labelled`.
        config: sizes.
        values: (n,) values to stratify by; None draws at random.

    Returns:
        (n, seeds) roles, "" for spectra without one.

    Raises:
        DataError: too few stars.
    """
    rows, spares = np.flatnonzero(labelled), np.flatnonzero(spare)
    splits = draw_splits(
        len(rows),
        seeds=config.seeds,
        train=config.train,
        validate=config.validate,
        test=config.test,
        first_seed=config.seed,
        stratify=None if values is None else values[rows],
    )
    wanted = min(PAPER_UNLABELLED, len(spares)) if config.unlabelled is None else config.unlabelled
    if wanted > len(spares):
        raise DataError(f"{wanted} unlabelled spectra are wanted, but there are {len(spares)}")
    role = np.full((len(labelled), config.seeds), "", dtype="<U10")
    kept = np.random.default_rng([config.seed, 1]).permutation(spares)[:wanted]
    role[kept] = UNLABELLED
    for name in (TRAIN, VALIDATE, TEST):
        np.put_along_axis(role, rows[getattr(splits, name)].T, np.array(name), axis=0)
    return role


def split_table(table: Table, config: SplitConfig) -> Table:
    """Add columns split_0, split_1, ..., one per seed, with the role of each spectrum.

    A labelled star must have the label and, if `table` has these columns of `catalogues.matching`, the flag
    "good". An unlabelled spectrum must have no label, the flag "good" and an S/N above `min_snr`, and must
    not be another spectrum of a labelled star (`duplicate_of`).

    Raises:
        DataError: missing columns, or too few stars.
    """
    _require(table, ["id", config.label, *([config.stratify] if config.stratify else [])])
    has_label = np.isfinite(floats(table[config.label], f"column {config.label}"))
    trusted = _flags(table) == Flag.GOOD
    spare = ~has_label & trusted & (_texts(table, "duplicate_of") == "")
    if config.unlabelled != 0 and config.min_snr > 0 and spare.any():
        _require(table, ["snr"])
        spare &= floats(table["snr"], "column snr") > config.min_snr  # False for NaN
    labelled = has_label & trusted
    values = None
    if config.stratify:
        values = floats(table[config.stratify], f"column {config.stratify}")
        labelled &= np.isfinite(values)
    role = draw_roles(labelled, spare, config, values)
    result = Table(table, copy=True)
    result.remove_columns([name for name in result.colnames if _COLUMN.fullmatch(name)])
    for column in range(config.seeds):
        result[f"split_{column}"] = role[:, column]
    sizes = {name: int((role[:, 0] == name).sum()) for name in (TRAIN, VALIDATE, TEST, UNLABELLED)}
    result.meta.update({f"split_{name}": count for name, count in sizes.items()})
    result.meta.update(split_seeds=config.seeds, split_seed=config.seed, stratify=config.stratify or "")
    return result


def split_file(labels: Path, out: Path, config: SplitConfig, *, say: Say = silent) -> Table:
    """Apply `split_table` to a file and write the result; `say` receives the sizes.

    Raises:
        SpecjaxError: an invalid table, or too few stars.
    """
    written_format(out)
    check_replaceable(out)
    table = split_table(_in_own_units(read_table(labels), labels), config)
    table["id"] = id_texts(table["id"])
    write_table(out, {name: table[name] for name in table.colnames}, table.meta)
    train, validate, test, unlabelled = (
        table.meta[f"split_{part}"] for part in (TRAIN, VALIDATE, TEST, UNLABELLED)
    )
    say(
        f"{counted(config.seeds, 'split')}: {train} training, {validate} validation and"
        f" {counted(test, 'test star')}, {counted(unlabelled, 'unlabelled spectrum', 'unlabelled spectra')}"
    )
    return table


def read_roles(path: str | Path) -> Roles | None:
    """Read the columns split_0, split_1, ... of a table of labels; None if it has none.

    Raises:
        DataError: the file is not a table, has no ids or an unknown role.
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
    """Return the target with the selected unlabelled spectra, and its splits as rows of the labelled ones.

    Raises:
        DataError: a star of the splits is not among the target's labelled ones (it has no spectrum, no label,
            or another flag than "good"), splits differ in size, or they have too few training stars.
    """
    row_of = {name: row for row, name in enumerate(target.labelled.id.tolist())}
    named = roles.id[roles.labelled(roles.id)]
    absent = [name for name in named.tolist() if name not in row_of]
    if absent:
        why = target.refused.get(absent[0], f"no usable spectrum or no {target.label}")
        raise DataError(
            f"{target.name}: {len(absent)} of {len(named)} stars of the splits cannot be used, the first "
            f"{absent[0]} ({why}); draw the splits again from the stars that can"
        )
    parts = {}
    for part in (TRAIN, VALIDATE, TEST):
        chosen = [roles.id[roles.role[:, seed] == part].tolist() for seed in range(roles.seeds)]
        if len({len(names) for names in chosen}) > 1:
            raise DataError(f"{target.name}: the splits differ in the number of {part} stars")
        rows = [[row_of[name] for name in names] for names in chosen]
        parts[part] = np.array(rows, dtype=np.int64).reshape(roles.seeds, -1)
    if not parts[TRAIN].size or not parts[TEST].size:
        raise DataError(f"{target.name}: the splits have no training stars, or no test stars")
    if parts[TRAIN].shape[1] < MIN_TRAIN:
        raise DataError(
            f"{target.name}: {parts[TRAIN].shape[1]} training stars are too few: at least {MIN_TRAIN} are"
            " needed"
        )
    unlabelled = roles.id[(roles.role == UNLABELLED).any(axis=1)]  # the same for all seeds
    kept = np.flatnonzero(np.isin(target.unlabelled.id, unlabelled))
    xp = target.unlabelled_xp
    target = replace(
        target, unlabelled=target.unlabelled[kept], unlabelled_xp=None if xp is None else xp[kept]
    )
    return target, Splits(**parts)


def _texts(table: Table, name: str) -> StrArray:
    """Return a column of strings; all "" if the table does not have it."""
    return id_texts(table[name]) if name in table.colnames else np.full(len(table), "")


def _in_own_units(table: Table, path: Path) -> Table:
    """Convert labels that are in other units: the table that is written has the units of `specjax.units`."""
    for name in table.colnames:
        unit = table[name].unit
        if unit is not None and label_unit(name) is not None:
            what = f"{path}: column {name}"
            table[name] = to_own_unit(name, floats(table[name], what), unit, what)
    return table


def _flags(table: Table) -> StrArray:
    """Return the flags of a table; all good if it has none."""
    return flag_texts(table["flag"]) if "flag" in table.colnames else np.full(len(table), Flag.GOOD)


def _require(table: Table, names: Sequence[str]) -> None:
    missing = [name for name in names if name not in table.colnames]
    if missing:
        raise DataError(
            f"the table of labels has no column {', '.join(missing)}: it has {', '.join(table.colnames)}"
        )
