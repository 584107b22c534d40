"""From the parts of all chunks to the one file, its Gaia XP side, and the report of what is not in it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from specjax._version import __version__
from specjax.atomic import atomic_file
from specjax.errors import DataError
from specjax.prepare.columns import stack
from specjax.prepare.plan import Plan
from specjax.prepare.work import Part, read_part
from specjax.preprocess import to_gaia_xp
from specjax.spectra import GAIA_XP_WAVELENGTH, LAMOST_WAVELENGTH, Spectra
from specjax.surveys import prepared
from specjax.surveys.io.tables import write_table
from specjax.typing import FloatArray

_EMPTY = {"flux": 0.0, "ivar": 0.0, "mask": True}  # of a star without a Gaia XP partner
_UNITS = {"ra": "deg", "dec": "deg", "wavelength": "Angstrom", "teff": "K", "logg": "dex", "fe_h": "dex"}


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of all files.

    Attributes:
      flags: (n,) of the spectra in the file.
      partners: how many of them have a Gaia XP side.
      bare: how many came without uncertainties; those of the others are not used then.
      report: rows (file, id, outcome, reason) of what was refused, occurred twice or is flagged.
    """

    flags: np.ndarray
    partners: int
    bare: int
    report: list[tuple[str, str, str, str]]


def assemble(parts: Sequence[Path], out: Path, plan: Plan, xp: Sequence[Spectra]) -> Outcome:
    """Write the prepared file from the parts, one in memory at a time, whole or not at all.

    Of several spectra with one id the first is kept. Without any spectrum no file is written.

    Args:
      parts: what `work.write_part` wrote.
      out: the file.
      plan: what the parts were made from.
      xp: Gaia XP spectra for the other side, by id.

    Raises:
      DataError: not one id of the Gaia XP spectra is that of a spectrum.
    """
    heads = [read_part(path, pixels=False) for path in parts]
    rows, report = _unique(heads)
    if not any(map(len, rows)):
        return Outcome(flags=np.zeros(0, dtype="<U1"), partners=0, bare=0, report=report)
    partners = _Partners(xp, heads)
    ids = np.concatenate([head.id[kept] for head, kept in zip(heads, rows, strict=True)])
    meta = stack(
        [_rows(head.meta["lamost"], kept) for head, kept in zip(heads, rows, strict=True) if len(kept)]
    )
    with atomic_file(out) as temporary:
        import h5py  # slow to import

        with h5py.File(temporary, "w") as file:
            file.attrs.update(format=prepared.FORMAT, version=prepared.VERSION, plan=plan.digest)
            file.attrs["creator"] = f"specjax {__version__}"
            _write_text(file, "id", ids)
            _describe(file, heads)
            _write_columns(file, meta)
            _write_pixels(file, LAMOST_WAVELENGTH, len(ids), _blocks(parts, rows, "lamost"))
            count = partners.write(file, plan, parts, heads, rows)
    flagged = zip(meta["file"], ids, meta["flag"], strict=True)
    report += [(str(name), str(star), "flagged", str(flag)) for name, star, flag in flagged if flag]
    return Outcome(flags=meta["flag"], partners=count, bare=sum(head.bare for head in heads), report=report)


def write_report(path: Path, report: Sequence[tuple[str, str, str, str]]) -> None:
    """Write the report as a table with columns file, id, outcome, reason; it may have no rows."""
    columns = np.array(report, dtype=np.str_).reshape(-1, 4)
    names = ("file", "id", "outcome", "reason")
    write_table(path, {name: columns[:, k] for k, name in enumerate(names)})


def _unique(heads: Sequence[Part]) -> tuple[list[np.ndarray], list[tuple[str, str, str, str]]]:
    """The rows of each part to keep, and the report on files refused and ids that occurred before."""
    report = [(name, "", "refused", reason) for head in heads for name, reason in head.refused]
    seen: dict[str, str] = {}
    rows = []
    for head in heads:
        kept = []
        files = head.meta["lamost"]["file"].tolist() if len(head) else []
        for row, (star, name) in enumerate(zip(head.id.tolist(), files, strict=True)):
            if star in seen:
                report.append((name, star, "duplicate", f"id {star} is in {seen[star]} already"))
            else:
                seen[star] = name
                kept.append(row)
        rows.append(np.array(kept, dtype=int))
    return rows, report


class _Partners:
    """The Gaia XP side: from XP files by id, else from a spectrum's own flux where it covers enough."""

    def __init__(self, xp: Sequence[Spectra], heads: Sequence[Part]) -> None:
        sides = [to_gaia_xp(spectra) for spectra in xp]
        self.given = {star: (side, row) for side in sides for row, star in enumerate(side.id.tolist())}
        self.has_ivar = all(side.has_ivar for side in sides) and all(
            not head.bare for head in heads if "gaia_xp" in head.sides
        )
        if xp and not any(star in self.given for head in heads for star in head.id.tolist()):
            raise DataError(f"no id of the {len(self.given)} Gaia XP spectra is that of a spectrum")

    def write(
        self, file: Any, plan: Plan, parts: Sequence[Path], heads: Sequence[Part], rows: Sequence[np.ndarray]
    ) -> int:
        """Write the group, unless no star has a side; returns how many do."""
        flags, fractions = self._flags(heads, rows)
        count = int((flags == "").sum())
        if not count:
            return 0
        group = file.create_group(prepared.XP_GROUP)
        group.attrs["survey"], group.attrs["has_ivar"] = "gaia_xp", self.has_ivar
        group.attrs["prepared"] = json.dumps({"tower": "gaia_xp", "fwhm_from": plan.options.fwhm_from})
        _write_columns(group, {"flag": flags, "masked_fraction": fractions})
        _write_pixels(group, GAIA_XP_WAVELENGTH, len(flags), self._blocks(parts, rows, flags != ""))
        return count

    def _flags(self, heads: Sequence[Part], rows: Sequence[np.ndarray]) -> tuple[np.ndarray, FloatArray]:
        """(n,) flags and masked fractions of the XP side."""
        flags: list[str] = []
        fractions: list[float] = []
        for head, kept in zip(heads, rows, strict=True):
            own = head.meta.get("gaia_xp")
            for row in kept.tolist():
                side, at = self.given.get(str(head.id[row]), (None, row))
                known = own if side is None else side.meta
                flags.append("no_partner" if known is None else str(known["flag"][at]))
                fractions.append(1.0 if known is None else float(known["masked_fraction"][at]))
        return np.array(flags, dtype="<U32"), np.array(fractions)

    def _blocks(
        self, parts: Sequence[Path], rows: Sequence[np.ndarray], flagged: np.ndarray
    ) -> Iterator[dict[str, np.ndarray]]:
        """Pixels of each part; none of a side that is flagged, as it covers too little to stand for XP."""
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


def _blocks(parts: Sequence[Path], rows: Sequence[np.ndarray], side: str) -> Iterator[dict[str, np.ndarray]]:
    for path, kept in zip(parts, rows, strict=True):
        if len(kept):
            yield _rows(read_part(path).sides[side], kept)


def _rows(columns: dict[str, np.ndarray], rows: np.ndarray) -> dict[str, np.ndarray]:
    return {name: column[rows] for name, column in columns.items()}


def _describe(file: Any, heads: Sequence[Part]) -> None:
    some = [head for head in heads if len(head)]
    file.attrs["survey"] = "+".join(sorted({survey for head in some for survey in head.surveys}))
    file.attrs["has_ivar"] = not any(head.bare for head in some)
    file.attrs["prepared"] = json.dumps(some[0].prepared)


def _write_pixels(group: Any, grid: FloatArray, count: int, blocks: Iterator[dict[str, np.ndarray]]) -> None:
    """The wavelengths and, block by block, flux, ivar and mask: contiguous, so that they can be mapped."""
    group["wavelength"] = grid
    group["wavelength"].attrs["unit"] = _UNITS["wavelength"]
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


def _write_columns(group: Any, columns: dict[str, np.ndarray]) -> None:
    meta = group.create_group(prepared.META_GROUP)
    for key, column in columns.items():
        name = key.replace("/", "_")  # which would make a group
        if column.dtype.kind == "U":
            _write_text(meta, name, column)
        else:
            meta[name] = column
        if name in _UNITS:
            meta[name].attrs["unit"] = _UNITS[name]


def _write_text(group: Any, name: str, column: np.ndarray) -> None:
    encoded = np.char.encode(column, "utf-8")
    group[name] = encoded if encoded.dtype.itemsize else encoded.astype("S1")
