"""One chunk of files, prepared: what could be read on the model grids, and why the rest could not."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from specjax.atomic import atomic_file
from specjax.errors import DataError, SpecjaxError
from specjax.prepare.columns import stack
from specjax.prepare.plan import Options, Source
from specjax.preprocess import to_gaia_xp, to_lamost
from specjax.spectra import Spectra
from specjax.surveys import arrays, read
from specjax.surveys.io.many import collecting
from specjax.surveys.io.snr import median_snr

_KEPT = ("flux", "ivar", "mask")


@dataclass(kw_only=True)
class Part:
    """Prepared spectra, side by side.

    Attributes:
      sides: {"lamost": arrays, "gaia_xp": arrays}, each with flux, ivar (float32) and mask; the second only
        if the options ask for it.
      id: (n,).
      meta: {"lamost": columns, "gaia_xp": columns}.
      refused: (file, reason) of what is not among them.
      bare: how many of them came without uncertainties.
      surveys: where they came from.
      prepared: what was done to them, as `Spectra.prepared` has it.
    """

    sides: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    id: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype="<U1"))
    meta: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    refused: list[tuple[str, str]] = field(default_factory=list)
    bare: int = 0
    surveys: list[str] = field(default_factory=list)
    prepared: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.id)


def prepare_chunk(sources: Sequence[Source], options: Options, path: Path) -> tuple[int, int]:
    """Prepare a chunk and write it; returns the numbers of spectra and of refusals. Runs in a worker."""
    part = prepare_sources(sources, options)
    write_part(path, part)
    return len(part), len(part.refused)


def prepare_sources(sources: Sequence[Source], options: Options) -> Part:
    """Read and prepare the sources; whatever goes wrong with one is noted and stops no other."""
    refused: list[tuple[str, str]] = []
    grids: dict[tuple[Any, ...], list[Spectra]] = {}
    for source in sources:
        try:
            with collecting() as left_out:
                spectra = _read(source, options)
        except Exception as error:  # one bad file never stops a batch, whatever it makes a reader raise
            refused.append((str(source.path), _reason(error)))
            continue
        refused += [(str(source.path), reason) for reason in left_out]
        # Those on one grid are worked on together, but never moved onto a common one: what becomes of a
        # spectrum doesn't depend on its neighbours.
        grids.setdefault(_grid_of(spectra), []).append(spectra)
    made = [_sides(group, options, refused) for group in grids.values()]
    return _joined([side for group in made for side in group], refused)


def write_part(path: Path, part: Part) -> None:
    """Write a part as an .npz file, whole or not at all."""
    content: dict[str, Any] = {
        f"{side}/{name}": a for side, of in part.sides.items() for name, a in of.items()
    }
    content |= {
        f"meta/{side}/{name}": column for side, of in part.meta.items() for name, column in of.items()
    }
    with atomic_file(path) as temporary:
        np.savez(
            temporary,
            id=part.id,
            refused=np.array(part.refused, dtype=np.str_).reshape(-1, 2),
            bare=part.bare,
            surveys=np.array(part.surveys, dtype=np.str_),
            prepared=json.dumps(part.prepared),
            **content,
        )


def read_part(path: Path, *, pixels: bool = True) -> Part:
    """Read what `write_part` wrote, the columns alone unless `pixels`."""
    part = Part()
    with np.load(path, allow_pickle=False) as file:
        part.id, part.bare = file["id"], int(file["bare"])
        part.surveys, part.prepared = file["surveys"].tolist(), json.loads(str(file["prepared"]))
        part.refused = [(name, reason) for name, reason in file["refused"].tolist()]
        for key in file.files:
            first, _, rest = key.partition("/")
            if first == "meta":
                side, _, name = rest.partition("/")
                part.meta.setdefault(side, {})[name] = file[key]
            elif rest:
                part.sides.setdefault(first, {})
                if pixels:
                    part.sides[first][rest] = file[key]
    return part


def _read(source: Source, options: Options) -> Spectra:
    medium, unit = options.wavelength_medium, options.wavelength_unit
    if source.rows is not None:
        spectra = arrays.read(source.path, medium, unit, rows=source.rows)
        if spectra.has_ivar and "snr" not in spectra.meta:  # as `read` does for whole files
            snr = median_snr(spectra.flux, spectra.ivar, spectra.valid)
            spectra = spectra.with_meta(snr=snr)
    else:
        spectra = read(source.path, options.survey, wavelength_medium=medium, wavelength_unit=unit)
    if spectra.prepared is not None:
        raise DataError(f"{source.path} is prepared already")
    if spectra.survey == "gaia_xp":
        raise DataError(f"{source.path} holds Gaia XP spectra, which are the other side of a star: use xp")
    return spectra.with_meta(file=np.full(len(spectra), str(source.path)))


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, SpecjaxError) else f"{type(error).__name__}: {text}"


def _grid_of(spectra: Spectra) -> tuple[Any, ...]:
    grid = spectra.wavelength
    key = grid.tobytes() if grid.ndim == 1 else id(spectra)
    return key, spectra.medium, spectra.has_ivar, spectra.survey, tuple(spectra.meta)


def _make_sides(spectra: Spectra, options: Options) -> tuple[Spectra, Spectra | None]:
    """The LAMOST side, and the Gaia XP side where the options give the resolution it is to come from."""
    lamost = to_lamost(
        spectra,
        method="interpolate" if options.method == "interpolate" else "rebin",
        max_masked=options.max_masked,
        fwhm=options.fwhm_from,
        fwhm_to=options.fwhm_to,
        velocity_column=options.velocity_column,
    )
    if options.fwhm_from is None:
        return lamost, None
    return lamost, to_gaia_xp(spectra, fwhm_from=options.fwhm_from, max_masked=options.max_masked)


def _sides(
    group: Sequence[Spectra], options: Options, refused: list[tuple[str, str]]
) -> list[tuple[Spectra, Spectra | None]]:
    """Both sides of spectra on one grid; if that fails, of each source alone, and the failures refused."""
    try:
        return [_make_sides(Spectra.concatenate(group), options)]
    except Exception as error:
        if len(group) > 1:
            return [side for spectra in group for side in _sides([spectra], options, refused)]
        refused.append((str(group[0].meta["file"][0]), _reason(error)))
        return []


def _joined(made: Sequence[tuple[Spectra, Spectra | None]], refused: list[tuple[str, str]]) -> Part:
    part = Part(refused=refused)
    if not made:
        return part
    lamost = [side for side, _ in made]
    partners = [side for _, side in made if side is not None]
    part.id = np.concatenate([side.id for side in lamost])
    part.bare = sum(len(side) for side in lamost if not side.has_ivar)
    part.surveys, part.prepared = sorted({side.survey for side in lamost}), dict(lamost[0].prepared or {})
    part.sides["lamost"], part.meta["lamost"] = _arrays(lamost), stack([_columns(side) for side in lamost])
    if partners:
        columns = [{name: side.meta[name] for name in ("flag", "masked_fraction")} for side in partners]
        part.sides["gaia_xp"], part.meta["gaia_xp"] = _arrays(partners), stack(columns)
    return part


def _arrays(sides: Sequence[Spectra]) -> dict[str, np.ndarray]:
    joined = {name: np.concatenate([getattr(side, name) for side in sides]) for name in _KEPT}
    return {name: a if a.dtype == np.bool_ else a.astype(np.float32) for name, a in joined.items()}


def _columns(spectra: Spectra) -> Mapping[str, np.ndarray]:
    return {name: column for name, column in spectra.meta.items() if column.ndim == 1}
