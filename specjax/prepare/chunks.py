"""Preparation of one chunk of files, with the reason for everything that is refused."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from specjax.errors import DataError, SpecjaxError
from specjax.prepare.parts import Part, stack_columns, write_part
from specjax.prepare.plan import Options, Source
from specjax.preprocess import to_gaia_xp, to_lamost
from specjax.spectra import Spectra
from specjax.surveys import arrays, read
from specjax.surveys.io.many import collecting
from specjax.surveys.io.snr import median_snr
from specjax.typing import AnyArray

_KEPT = ("flux", "ivar", "mask")


def prepare_chunk(sources: Sequence[Source], options: Options, path: Path) -> tuple[int, int]:
    """Prepare a chunk and write it; return the numbers of spectra and of refusals. Runs in a worker."""
    part = prepare_sources(sources, options)
    write_part(path, part)
    return len(part), len(part.refused)


def prepare_sources(sources: Sequence[Source], options: Options) -> Part:
    """Read and prepare the sources; a failure of one is recorded and does not affect the others."""
    refused: list[tuple[str, str]] = []
    grids: dict[tuple[Any, ...], list[Spectra]] = {}
    for source in sources:
        try:
            with collecting() as left_out:
                spectra = _read(source, options)
        except Exception as error:  # no bad file stops a batch, whatever error it causes
            refused.append((str(source.path), _reason(error)))
            continue
        refused += [(str(source.path), reason) for reason in left_out]
        # Spectra on the same grid are prepared together, but never resampled to a common one, so that the
        # result does not depend on the other spectra of a chunk.
        grids.setdefault(_grid_of(spectra), []).append(spectra)
    prepared = [_prepare_group(group, options, refused) for group in grids.values()]
    return _as_part([sides for group in prepared for sides in group], refused)


def _read(source: Source, options: Options) -> Spectra:
    medium, unit = options.wavelength_medium, options.wavelength_unit
    if source.rows is not None:
        spectra = arrays.read(source.path, medium, unit, rows=source.rows)
        if spectra.has_ivar and "snr" not in spectra.meta:  # as `surveys.read` does for whole files
            snr = median_snr(spectra.flux, spectra.ivar, spectra.valid)
            spectra = spectra.with_meta(snr=snr)
    else:
        spectra = read(source.path, options.survey, wavelength_medium=medium, wavelength_unit=unit)
    if spectra.prepared is not None:
        raise DataError(f"{source.path} is already prepared")
    if spectra.survey == "gaia_xp":
        raise DataError(f"{source.path} holds Gaia XP spectra, which belong on the XP side: pass it as xp")
    return spectra.with_meta(file=np.full(len(spectra), str(source.path)))


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, SpecjaxError) else f"{type(error).__name__}: {text}"


def _grid_of(spectra: Spectra) -> tuple[Any, ...]:
    """Return a key that is equal for spectra that can be prepared together."""
    grid = spectra.wavelength
    key = grid.tobytes() if grid.ndim == 1 else id(spectra)
    return key, spectra.medium, spectra.has_ivar, spectra.survey, tuple(spectra.meta)


def _make_sides(spectra: Spectra, options: Options) -> tuple[Spectra, Spectra | None]:
    """Prepare the LAMOST side, and the Gaia XP side if the options give the resolution of the spectra."""
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


def _prepare_group(
    group: Sequence[Spectra], options: Options, refused: list[tuple[str, str]]
) -> list[tuple[Spectra, Spectra | None]]:
    """Prepare both sides of spectra on one grid; if that fails, prepare each source alone."""
    try:
        return [_make_sides(Spectra.concatenate(group), options)]
    except Exception as error:
        if len(group) > 1:
            return [side for spectra in group for side in _prepare_group([spectra], options, refused)]
        refused.append((str(group[0].meta["file"][0]), _reason(error)))
        return []


def _as_part(prepared: Sequence[tuple[Spectra, Spectra | None]], refused: list[tuple[str, str]]) -> Part:
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
