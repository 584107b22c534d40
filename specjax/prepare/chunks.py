"""Preparation of one chunk of files, with the reason for everything that is refused."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from specjax.errors import DataError, SpecjaxError
from specjax.prepare.parts import Part, stack_columns, write_part
from specjax.prepare.plan import Options, Source
from specjax.preprocess import to_gaia_xp, to_lamost
from specjax.preprocess.to_grid import range_used
from specjax.spectra import Spectra
from specjax.surveys import arrays, read_xp
from specjax.surveys.io.many import assuming, collecting
from specjax.surveys.io.snr import median_snr
from specjax.surveys.registry import read_in_place
from specjax.typing import AnyArray

Sides = tuple[Spectra, Spectra | None]
"""The LAMOST side and, if there is one, the Gaia XP side of the same spectra."""

_KEPT = ("flux", "ivar", "mask")
_EXACT = 1e30  # inverse variance of flux without an uncertainty; the fill of masked pixels limits it


class OnGrid(NamedTuple):
    """Spectra of a chunk on a model grid, float32, and the (file, reason) of what is refused."""

    spectra: Spectra | None
    refused: list[tuple[str, str]]


def prepare_chunk(sources: Sequence[Source], options: Options, path: Path) -> tuple[int, int]:
    """Prepare a chunk and write it; return the numbers of spectra and of refusals. Runs in a worker."""
    part = prepare_sources(sources, options)
    write_part(path, part)
    return len(part), len(part.refused)


def prepare_sources(sources: Sequence[Source], options: Options) -> Part:
    """Read and prepare the sources; a failure of one is recorded and does not affect the others."""
    return _as_part(*_prepare(sources, options, _read_raw, _make_sides))


def put_on_grid(sources: Sequence[Source], options: Options) -> OnGrid:
    """Read the sources and put them on a model grid, row by row in their order. Runs in a worker.

    The grid is that of `options.tower`. Sources that are already on it are accepted. Of `meta`, file, flag
    and masked_fraction are kept.
    """
    read_source, convert = (_read_any, _lamost) if options.tower == "lamost" else (_read_xp, _gaia_xp)
    prepared, refused = _prepare(sources, options, read_source, lambda *given: (convert(*given), None))
    sides = [side for side, _ in prepared]
    if not sides:
        return OnGrid(None, refused)
    place = {str(source.path): place for place, source in reversed(list(enumerate(sources)))}
    files = np.concatenate([side.meta["file"] for side in sides])
    order = np.argsort([place[file] for file in files.tolist()], kind="stable")
    some = any(side.has_ivar for side in sides)
    joined = _arrays([_with_ivar(side) if some else side for side in sides])
    kept = ("file", "flag", "masked_fraction")
    meta = stack_columns([{name: side.meta[name] for name in kept} for side in sides])
    spectra = replace(
        sides[0],
        flux=joined["flux"][order],
        ivar=joined["ivar"][order],
        mask=joined["mask"][order],
        id=np.concatenate([side.id for side in sides])[order],
        meta={name: column[order] for name, column in meta.items()},
        has_ivar=some,
    )
    return OnGrid(spectra, refused)


def _with_ivar(spectra: Spectra) -> Spectra:
    """Replace missing uncertainties by ones so small that they weigh all pixels alike, too."""
    if spectra.has_ivar:
        return spectra
    return replace(spectra, ivar=np.where(spectra.mask, 0.0, _EXACT), has_ivar=True)


def _prepare(
    sources: Sequence[Source],
    options: Options,
    read_source: Callable[[Source, Options], Spectra],
    make_sides: Callable[[Spectra, Options], Sides],
) -> tuple[list[Sides], list[tuple[str, str]]]:
    """Return the sides of the sources that can be read and prepared, and what is refused with the reason."""
    refused: list[tuple[str, str]] = []
    grids: dict[tuple[Any, ...], list[Spectra]] = {}
    for source in sources:
        try:
            with collecting() as left_out:
                spectra = read_source(source, options)
        except Exception as error:  # no bad file stops a batch, whatever error it causes
            refused.append((str(source.path), _reason(error)))
            continue
        refused += [(str(source.path), reason) for reason in left_out]
        # Spectra on the same grid are prepared together, but never resampled to a common one, so that the
        # result does not depend on the other spectra of a chunk.
        grids.setdefault(_grid_of(spectra), []).append(spectra)
    prepared = [_prepare_group(group, options, make_sides, refused) for group in grids.values()]
    return [sides for group in prepared for sides in group], refused


def _read(source: Source, options: Options, within: tuple[float, float] | None = None) -> Spectra:
    """Read a source; of arrays, only the pixels near the wavelengths `within`, if these are given."""
    with assuming(options.assumed_medium, options.assumed_unit):
        return _read_declared(source, options, within)


def _read_declared(source: Source, options: Options, within: tuple[float, float] | None) -> Spectra:
    medium, unit = options.wavelength_medium, options.wavelength_unit
    if source.rows is not None:
        spectra = arrays.read(source.path, medium, unit, rows=source.rows, within=within)
    else:
        spectra = read_in_place(source.path, source.place, options.survey, medium, unit)
    return spectra.with_meta(file=np.full(len(spectra), str(source.path)))


def _read_raw(source: Source, options: Options) -> Spectra:
    """Read a source; refuse what is prepared or belongs on the XP side."""
    spectra = _read(source, options)
    if spectra.prepared is not None:
        raise DataError(f"{source.path} is already prepared")
    if spectra.survey == "gaia_xp":
        raise DataError(f"{source.path} holds Gaia XP spectra, which belong on the XP side: pass it as xp")
    if spectra.has_ivar and "snr" not in spectra.meta:  # of rows, as `surveys.read` does for whole files
        return spectra.with_meta(snr=median_snr(spectra.flux, spectra.ivar, spectra.valid))
    return spectra


def _read_any(source: Source, options: Options) -> Spectra:
    """Read a source for the LAMOST grid; refuse Gaia XP spectra."""
    spectra = _read(source, options, range_used(options.fwhm_from, options.fwhm_to))
    if _is_xp(spectra):
        raise DataError(
            f"{source.path} holds Gaia XP spectra, which the LAMOST tower of a model does not take;"
            " `specjax translate --to lamost` reads them"
        )
    return spectra


def _read_xp(source: Source, options: Options) -> Spectra:
    """Read a source for the Gaia XP grid: the XP spectra of a file, or others if their FWHM is given."""
    partner = None if source.rows is not None else read_xp(source.path)
    if partner is not None:
        return partner.with_meta(file=np.full(len(partner), str(source.path)))
    spectra = _read(source, options)
    if not _is_xp(spectra) and options.fwhm_from is None:
        raise DataError(
            f"{source.path} holds no Gaia XP spectra; spectra that cover 336-1020 nm can take their place if"
            " their resolution in Angstrom is given (fwhm)"
        )
    return spectra


def _is_xp(spectra: Spectra) -> bool:
    return spectra.survey == "gaia_xp" or (spectra.prepared or {}).get("tower") == "gaia_xp"


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, SpecjaxError) else f"{type(error).__name__}: {text}"


def _grid_of(spectra: Spectra) -> tuple[Any, ...]:
    """Return a key that is equal for spectra that can be prepared together."""
    grid = spectra.wavelength
    key = grid.tobytes() if grid.ndim == 1 else id(spectra)
    how = tuple((spectra.prepared or {}).items())
    return key, spectra.medium, spectra.has_ivar, spectra.survey, tuple(spectra.meta), how


def _lamost(spectra: Spectra, options: Options) -> Spectra:
    return to_lamost(
        spectra,
        method=options.method,
        max_masked=options.max_masked,
        fwhm=options.fwhm_from,
        fwhm_to=options.fwhm_to,
        velocity_column=options.velocity_column,
    )


def _gaia_xp(spectra: Spectra, options: Options) -> Spectra:
    fwhm = None if _is_xp(spectra) else options.fwhm_from
    return to_gaia_xp(spectra, fwhm_from=fwhm, max_masked=options.max_masked)


def _make_sides(spectra: Spectra, options: Options) -> Sides:
    """Prepare the LAMOST side, and the Gaia XP side if the options give the resolution of the spectra."""
    lamost = _lamost(spectra, options)
    if options.fwhm_from is None:
        return lamost, None
    return lamost, to_gaia_xp(spectra, fwhm_from=options.fwhm_from, max_masked=options.max_masked)


def _prepare_group(
    group: Sequence[Spectra],
    options: Options,
    make_sides: Callable[[Spectra, Options], Sides],
    refused: list[tuple[str, str]],
) -> list[Sides]:
    """Prepare the sides of spectra on one grid; if that fails, prepare each source alone."""
    try:
        return [make_sides(Spectra.concatenate(group), options)]
    except Exception as error:
        if len(group) > 1:
            single = [_prepare_group([spectra], options, make_sides, refused) for spectra in group]
            return [sides for prepared in single for sides in prepared]
        refused.append((str(group[0].meta["file"][0]), _reason(error)))
        return []


def _as_part(prepared: Sequence[Sides], refused: list[tuple[str, str]]) -> Part:
    part = Part(refused=refused)
    if not prepared:
        return part
    lamost = [side for side, _ in prepared]
    partners = [side for _, side in prepared if side is not None]
    part.id = np.concatenate([side.id for side in lamost])
    part.without_ivar = sum(len(side) for side in lamost if not side.has_ivar)
    part.surveys, part.prepared = sorted({side.survey for side in lamost}), dict(lamost[0].prepared or {})
    part.sides["lamost"] = _arrays(lamost)
    part.meta["lamost"] = stack_columns([_columns(side) for side in lamost])
    if partners:
        columns = [{name: side.meta[name] for name in ("flag", "masked_fraction")} for side in partners]
        part.sides["gaia_xp"], part.meta["gaia_xp"] = _arrays(partners), stack_columns(columns)
    return part


def _arrays(sides: Sequence[Spectra]) -> dict[str, AnyArray]:
    joined = {name: np.concatenate([getattr(side, name) for side in sides]) for name in _KEPT}
    return {name: a if a.dtype == np.bool_ else a.astype(np.float32) for name, a in joined.items()}


def _columns(spectra: Spectra) -> Mapping[str, AnyArray]:
    return {name: column for name, column in spectra.meta.items() if column.ndim == 1}
