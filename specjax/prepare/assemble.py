"""Assembly of the parts into one HDF5 file with a Gaia XP side, and the report on its input."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from specjax import units
from specjax._version import __version__
from specjax.atomic import atomic_file
from specjax.errors import DataError
from specjax.flags import FLAG_DTYPE, Flag
from specjax.prepare.parts import Part, read_part, stack_columns
from specjax.prepare.plan import Plan, report_path
from specjax.preprocess import to_gaia_xp
from specjax.spectra import Spectra, joint_name
from specjax.surveys import prepared
from specjax.surveys.arrays import for_hdf5
from specjax.surveys.io import checksums
from specjax.surveys.io.tables import write_table
from specjax.typing import AnyArray, BoolArray, FloatArray, IntArray, StrArray
from specjax.wavelength import GAIA_XP_WAVELENGTH, LAMOST_WAVELENGTH

Report = list[tuple[str, str, str, str]]
"""Rows (file, id, outcome, reason)."""

_EMPTY = {"flux": 0.0, "ivar": 0.0, "mask": True}  # for a star without a Gaia XP partner


@dataclass(frozen=True, kw_only=True)
class Assembled:
    """The contents of the prepared file.

    Attributes:
        flags: (n,) of the spectra in the file.
        partners: number of spectra with a Gaia XP side.
        without_ivar: number of spectra without uncertainties; if any, no uncertainties are used.
        report: rows for everything that is refused, duplicated or flagged.
    """

    flags: StrArray
    partners: int
    without_ivar: int
    report: Report


def assemble(parts: Sequence[Path], out: Path, plan: Plan, xp: Sequence[Spectra]) -> Assembled:
    """Write the prepared file from the parts, atomically and with one part in memory at a time.

    Of several spectra with the same id the first is kept. If there are no spectra, no file is written. The
    report, at `plan.report_path`, comes first, so that a file that exists has one.

    Args:
        parts: files of `write_part`.
        out: the file to write.
        plan: the plan from which the parts were made.
        xp: Gaia XP spectra for the XP side, matched by id.

    Raises:
        DataError: if no Gaia XP spectrum has the id of a spectrum.
    """
    headers = [read_part(path, pixels=False) for path in parts]
    rows, report = _first_of_each_id(headers)
    if not any(map(len, rows)):
        write_report(report_path(out), report)
        return Assembled(flags=np.zeros(0, dtype="<U1"), partners=0, without_ivar=0, report=report)
    xp_side = _XPSide(xp, headers)
    ids = np.concatenate([header.id[kept] for header, kept in zip(headers, rows, strict=True)])
    meta = stack_columns(
        [_rows(header.meta["lamost"], kept) for header, kept in zip(headers, rows, strict=True) if len(kept)]
    )
    flagged = zip(meta["file"], ids, meta["flag"], strict=True)
    report += [
        (str(name), str(star), "flagged", str(flag)) for name, star, flag in flagged if flag != Flag.GOOD
    ]
    with atomic_file(out) as temporary:
        import h5py  # imported here because it is slow

        with h5py.File(temporary, "w", libver=checksums.LIBVER) as file:
            about = {"format": prepared.FORMAT, "plan": plan.digest, "creator": f"specjax {__version__}"}
            checksums.set_attributes(file, {**about, "version": prepared.VERSION})
            file["id"] = for_hdf5(ids)
            _write_attributes(file, headers, out.stem)
            _write_columns(file, meta)
            _write_pixels(file, LAMOST_WAVELENGTH, len(ids), _blocks(parts, rows, "lamost"))
            partners = xp_side.write(file, plan, parts, headers, rows)
            checksums.seal(file)
        write_report(report_path(out), report)
    without_ivar = sum(header.without_ivar for header in headers)
    return Assembled(flags=meta["flag"], partners=partners, without_ivar=without_ivar, report=report)


def write_report(path: Path, report: Report) -> None:
    """Write the report as a table with columns file, id, outcome and reason, even if it has no rows."""
    columns = np.array(report, dtype=np.str_).reshape(-1, 4)
    names = ("file", "id", "outcome", "reason")
    write_table(path, {name: columns[:, k] for k, name in enumerate(names)})


def _first_of_each_id(headers: Sequence[Part]) -> tuple[list[IntArray], Report]:
    """Return the rows of each part to keep, and the report on refused files and duplicate ids."""
    report = [(name, "", "refused", reason) for header in headers for name, reason in header.refused]
    seen: dict[str, str] = {}
    rows = []
    for header in headers:
        kept = []
        files = header.meta["lamost"]["file"].tolist() if len(header) else []
        for row, (star, name) in enumerate(zip(header.id.tolist(), files, strict=True)):
            if star in seen:
                report.append((name, star, "duplicate", f"id {star} already occurs in {seen[star]}"))
            else:
                seen[star] = name
                kept.append(row)
        rows.append(np.array(kept, dtype=int))
    return rows, report


class _XPSide:
    """The Gaia XP side, from XP files by id, else from the spectrum's own flux where it covers enough."""

    def __init__(self, xp: Sequence[Spectra], headers: Sequence[Part]) -> None:
        sides = [to_gaia_xp(spectra) for spectra in xp]
        self.given = {star: (side, row) for side in sides for row, star in enumerate(side.id.tolist())}
        self.has_ivar = all(side.has_ivar for side in sides) and all(
            not header.without_ivar for header in headers if "gaia_xp" in header.sides
        )
        if xp and not any(star in self.given for header in headers for star in header.id.tolist()):
            raise DataError(f"no id of the {len(self.given)} Gaia XP spectra matches a spectrum")

    def write(
        self, file: Any, plan: Plan, parts: Sequence[Path], headers: Sequence[Part], rows: Sequence[IntArray]
    ) -> int:
        """Write the group unless no star has an XP side; return how many do."""
        flags, fractions = self._flags(headers, rows)
        count = int((flags == Flag.GOOD).sum())
        if not count:
            return 0
        group = file.create_group(prepared.XP_GROUP)
        how = json.dumps({"tower": "gaia_xp", "fwhm_from": plan.options.fwhm_from})
        about = {"survey": "gaia_xp", "has_ivar": self.has_ivar, "prepared": how}
        checksums.set_attributes(group, about)
        _write_columns(group, {"flag": flags, "masked_fraction": fractions})
        _write_pixels(group, GAIA_XP_WAVELENGTH, len(flags), self._blocks(parts, rows, flags != Flag.GOOD))
        return count

    def _flags(self, headers: Sequence[Part], rows: Sequence[IntArray]) -> tuple[StrArray, FloatArray]:
        """Return (n,) flags and masked fractions of the XP side."""
        flags: list[str] = []
        fractions: list[float] = []
        for header, kept in zip(headers, rows, strict=True):
            own = header.meta.get("gaia_xp")
            for row in kept.tolist():
                side, at = self.given.get(str(header.id[row]), (None, row))
                known = own if side is None else side.meta
                flags.append(Flag.NO_PARTNER if known is None else str(known["flag"][at]))
                fractions.append(1.0 if known is None else float(known["masked_fraction"][at]))
        return np.array(flags, dtype=FLAG_DTYPE), np.array(fractions)

    def _blocks(
        self, parts: Sequence[Path], rows: Sequence[IntArray], flagged: BoolArray
    ) -> Iterator[dict[str, AnyArray]]:
        """Yield the pixels of each part; flagged rows are left empty, because they cover too little."""
        start = 0
        for path, kept in zip(parts, rows, strict=True):
            part = read_part(path)
            shape = (len(kept), GAIA_XP_WAVELENGTH.size)
            empty = {name: np.full(shape, value) for name, value in _EMPTY.items()}
            own = part.sides.get("gaia_xp")
            block = {name: array.copy() for name, array in empty.items()} if own is None else _rows(own, kept)
            for k, row in enumerate(kept.tolist()):
                if found := self.given.get(str(part.id[row])):
                    for name in block:
                        block[name][k] = getattr(found[0], name)[found[1]]
            out = flagged[start : start + len(kept)]
            start += len(kept)
            yield {name: np.where(out[:, None], empty[name], values) for name, values in block.items()}


def _blocks(parts: Sequence[Path], rows: Sequence[IntArray], side: str) -> Iterator[dict[str, AnyArray]]:
    for path, kept in zip(parts, rows, strict=True):
        if len(kept):
            yield _rows(read_part(path).sides[side], kept)


def _rows(columns: dict[str, AnyArray], rows: IntArray) -> dict[str, AnyArray]:
    return {name: column[rows] for name, column in columns.items()}


def _write_attributes(file: Any, headers: Sequence[Part], name: str) -> None:
    """Write what holds for all spectra; `name` is theirs if they are of no survey."""
    some = [header for header in headers if len(header)]
    about = {
        "survey": joint_name(sorted({survey for header in some for survey in header.surveys}), name),
        "has_ivar": not any(header.without_ivar for header in some),
        "prepared": json.dumps(some[0].prepared),
    }
    checksums.set_attributes(file, about)


def _write_pixels(group: Any, grid: FloatArray, count: int, blocks: Iterator[dict[str, AnyArray]]) -> None:
    """Write wavelengths and, block by block, flux, ivar and mask, contiguous so that they can be mapped."""
    group["wavelength"] = grid
    group["wavelength"].attrs["unit"] = units.COLUMNS["wavelength"]
    types = {"flux": np.float32, "ivar": np.float32, "mask": np.bool_}
    arrays = {
        name: group.create_dataset(name, (count, grid.size), dtype=kind) for name, kind in types.items()
    }
    start = 0
    for block in blocks:
        stop = start + len(block["flux"])
        for name, array in arrays.items():
            array[start:stop] = block[name]
        start = stop


def _write_columns(group: Any, columns: dict[str, AnyArray]) -> None:
    meta = group.create_group(prepared.META_GROUP)
    for key, column in columns.items():
        name = key.replace("/", "_")  # a slash would create a group
        meta[name] = for_hdf5(column)
        if name in units.COLUMNS:
            meta[name].attrs["unit"] = units.COLUMNS[name]
