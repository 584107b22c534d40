"""What a run does with every chunk: read it, put it on the grid, compute its columns, and write its part."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from specjax._version import __version__
from specjax.checkpoints.hub import is_address
from specjax.errors import DataError
from specjax.flags import FLAG_DTYPE, USABLE
from specjax.foundation import Foundation
from specjax.foundation.inputs import pixel_count
from specjax.foundation.model import SHIPPED
from specjax.pipeline.parts import Columns, write_part
from specjax.prepare.chunks import OnGrid, put_on_grid
from specjax.prepare.parts import stack_columns
from specjax.prepare.plan import Options, Source
from specjax.spectra import Spectra
from specjax.surveys import prepared
from specjax.surveys.io.many import collecting
from specjax.typing import AnyArray, BoolArray, Float32Array, StrArray

VERSION = 4
"""Version of the parts; those of another version are not resumed."""


SHARED = "models, spectra and output must lie on a file system that all workers share"
"""The advice where a worker of another host does not find something."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """What is done with every chunk of spectra.

    Attributes:
        compute: maps n spectra on the LAMOST grid to columns (n, ...), among them id and flag.
        check: raises ConfigError if prepared spectra do not have the preparation that is wanted.
        options: options of reading and preprocessing raw spectra.
        record: everything else that the columns depend on, for JSON: digests and options.
        meta: metadata of the output.
        again: makes the same work in another process, wherever that runs, and can be pickled.
        wide: names of columns of vectors, which are never in memory as a whole; only some formats take them.
        shared: arrays (p,) that belong to every row, such as the wavelengths of a wide column.
        notes: lines to say before the run.
        known: ids of the spectra whose labels the model has been fitted to.
    """

    compute: Callable[[Spectra], Columns]
    check: Callable[[Spectra], object]
    options: Options
    record: Mapping[str, Any]
    meta: Mapping[str, Any]
    again: Callable[[], "Work"]
    wide: tuple[str, ...] = ()
    shared: Mapping[str, AnyArray] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    known: frozenset[str] = frozenset()


def record_of(work: Work, stamps: Mapping[str, list[int]] | None = None) -> dict[str, Any]:
    """Return everything that parts depend on, for JSON: the version, the options, and the stamps of files."""
    options = {**work.record, **asdict(work.options)}
    return {"version": f"{__version__}/{VERSION}", "options": options, "stamps": dict(stamps or {})}


def raw_options(
    survey: str | None, wavelength_medium: str | None, wavelength_unit: str | None, fwhm: float | None = None
) -> Options:
    """Return the options for raw spectra; prepared ones are accepted as either method made them."""
    return Options(
        survey=survey,
        wavelength_medium=wavelength_medium,
        wavelength_unit=wavelength_unit,
        method=None,
        fwhm_from=fwhm,
    )


def about_model(foundation: Foundation, model: str | Path) -> dict[str, Any]:
    """Return the metadata of an output that a model made, `model` being what it was loaded from."""
    return {
        "specjax": __version__,
        "model": str(model),
        "digest": foundation.digest or "",
        "dtype": foundation.dtype,
    }


def located(model: str | Path) -> str | Path:
    """Return the absolute path of a folder; the name of a model that ships or its address as it is."""
    return model if str(model) in SHIPPED or is_address(model) else Path(model).absolute()


def one_spectrum(model: Foundation, tower: str = "lamost") -> Float32Array:
    """Return a featureless spectrum (1, pixels), to try out what a model can do before a run."""
    return np.ones((1, pixel_count(model.config, tower)), np.float32)


def of_usable(
    spectra: Spectra, width: tuple[int, ...], compute: Callable[[Spectra], AnyArray]
) -> tuple[Float32Array, StrArray, BoolArray]:
    """Compute a wide column of prepared spectra.

    Args:
        spectra: n spectra on a model grid, with flags.
        width: shape of the column in one row.
        compute: maps the usable spectra, at least one, to their rows of the column.

    Returns:
        The column (n, *width), NaN for spectra that cannot be used; their flags (n,), and usable (n,).
    """
    flag = spectra.meta["flag"].astype(FLAG_DTYPE)
    column, usable = np.full((len(spectra), *width), np.nan, np.float32), np.isin(flag, USABLE)
    if usable.any():
        column[usable] = compute(spectra[np.flatnonzero(usable)])
    return column, flag, usable


def read_chunk(sources: Sequence[Source], options: Options) -> OnGrid:
    """Read a chunk and put it on the grid of the options; the rows of a prepared file are there already."""
    first = sources[0]
    return _read_prepared(first, options.tower) if first.prepared else put_on_grid(sources, options)


def write_chunk(work: Work, chunk: OnGrid, path: Path) -> int:
    """Compute the columns of a chunk, write them with what is refused as a part, and return their length."""
    columns, refused = columns_of(work, chunk)
    write_part(path, columns, refused)
    return len(columns.get("id", ()))


def columns_of(work: Work, chunk: OnGrid) -> tuple[Columns, list[tuple[str, str]]]:
    """Return the columns of a chunk, {} if it has no spectra, and (file, reason) of what is refused."""
    computed, refused = ([], []) if chunk.spectra is None else _compute(work, chunk.spectra)
    return stack_columns(computed) if computed else {}, [*chunk.refused, *refused]


def _read_prepared(source: Source, tower: str) -> OnGrid:
    """Read rows of a prepared file, which is the only source of its chunk."""
    with collecting() as left_out:
        try:
            spectra = prepared.read_side(source.path, tower, rows=source.rows)
        except DataError as error:
            return OnGrid(None, [(str(source.path), str(error))])
    refused = [(str(source.path), reason) for reason in left_out]
    return OnGrid(spectra.with_meta(file=np.full(len(spectra), str(source.path))), refused)


def _compute(work: Work, spectra: Spectra) -> tuple[list[Columns], list[tuple[str, str]]]:
    """Return the columns of all files, or of each one, and (file, reason) of those that the model refuses."""
    try:
        return [work.compute(spectra)], []
    except DataError as error:
        files = spectra.meta["file"]
        names = list(dict.fromkeys(files.tolist()))
        if len(names) == 1:
            return [], [(names[0], f"{len(spectra)} spectra from {spectra.id[0]}: {error}")]
    alone = [_compute(work, spectra[files == name]) for name in names]
    return [part for parts, _ in alone for part in parts], [row for _, rows in alone for row in rows]
