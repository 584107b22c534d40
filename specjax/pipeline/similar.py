"""The spectra of a catalogue of vectors that are most similar to given ones."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from specjax.errors import ConfigError, DataError
from specjax.foundation import DtypeChoice
from specjax.overwrite import check_replaceable
from specjax.pipeline.embed import embed_work
from specjax.pipeline.neighbours import Index, Neighbours, exact_neighbours, has_hnswlib, normalised
from specjax.pipeline.parts import Columns
from specjax.pipeline.vectors import VECTORS, Catalogue, is_catalogue, open_catalogue
from specjax.pipeline.work import columns_of, raw_options, read_chunk
from specjax.prepare import Options
from specjax.prepare.parts import stack_columns
from specjax.prepare.plan import make_plan
from specjax.progress import Say, silent
from specjax.surveys.io.tables import write_table, written_format
from specjax.typing import Float32Array, IntArray, StrArray

EXACT_ROWS = 100_000
"""Number of vectors up to which all of them are compared."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Queries:
    """Vectors whose neighbours are sought.

    Attributes:
        id: (q,) ids of the spectra.
        flag: (q,) their flags.
        vectors: (q, d) NaN for unusable spectra.
        row: (q,) their rows in the catalogue, which are no neighbours of theirs; None if they are not in it.
    """

    id: StrArray
    flag: StrArray
    vectors: Float32Array
    row: IntArray | None = None


def find_similar(
    *,
    catalogue: Path,
    out: Path,
    spectra: Sequence[Path] = (),
    ids: Sequence[str] = (),
    nearest: int = 10,
    exact: bool = False,
    model: str | Path = "mini",
    fwhm: float | None = None,
    survey: str | None = None,
    wavelength_medium: str | None = None,
    wavelength_unit: str | None = None,
    dtype: DtypeChoice = "auto",
    say: Say = silent,
) -> Columns:
    """Find the spectra of a catalogue whose vectors are most similar to given ones, and write a table.

    Similarity is the cosine of the angle between two vectors.

    Up to `EXACT_ROWS` vectors are all compared. Beyond, an index finds most of the nearest ones; it is kept
    beside the catalogue, CATALOGUE.hnsw, and made again if the catalogue has changed or the index is damaged.

    Args:
        catalogue: a file or folder of vectors that `embed_survey` has written.
        out: the table to write, .ecsv, .fits, .parquet or .csv.
        spectra: the queries: files and folders of spectra, which are embedded; or one file of vectors.
        ids: queries that are in the catalogue; they are no neighbours of themselves.
        nearest: number of neighbours of each query.
        exact: compare all vectors, however many.
        model: the model that made the vectors, a folder or "mini", for queries that are spectra.
        fwhm: resolution of raw spectra in Angstrom, as in `to_lamost`.
        survey: as in `surveys.read`.
        wavelength_medium: likewise.
        wavelength_unit: likewise.
        dtype: type of the model's matrix products, as in `foundation.load`.
        say: receives lines of progress.

    Returns:
        The columns of the table, a row per query and neighbour: query, the id; query_flag; rank, from 1; id,
        row and flag of the neighbour in the catalogue; and similarity, from -1 to 1. Queries without a vector
        are left out and reported.

    Raises:
        ConfigError: spectra and ids are given, or neither; fewer than one neighbour is asked for; or the
            vectors were made by another model.
        DataError: a file cannot be read, an id is not in the catalogue, or no query has a vector.
    """
    if nearest < 1:
        raise ConfigError(f"at least one neighbour must be asked for, not {nearest}")
    if bool(spectra) == bool(ids):
        raise ConfigError("similar needs spectra or --id of spectra in the catalogue, and not both")
    written_format(Path(out))
    check_replaceable(Path(out))
    found = open_catalogue(catalogue)
    options = raw_options(survey, wavelength_medium, wavelength_unit, fwhm)
    if ids:
        queries = _in_catalogue(found, ids)
    elif len(spectra) == 1 and is_catalogue(Path(spectra[0])):
        queries = _of_vectors(found, open_catalogue(spectra[0]))
    else:
        queries = _of_spectra(found, model, dtype, spectra, options, Path(out), say)
    queries = _with_vectors(queries, say)
    neighbours = _search(found, queries, nearest, exact, say)
    columns = _columns(found, queries, neighbours)
    meta = {"catalogue": str(catalogue), **{name: found.meta[name] for name in ("model", "digest")}}
    write_table(out, columns, meta)
    return columns


def _in_catalogue(found: Catalogue, ids: Sequence[str]) -> Queries:
    """Return the spectra of the catalogue with these ids; all of them if an id occurs twice."""
    rows = [np.flatnonzero(found.id == name) for name in ids]
    for name, each in zip(ids, rows, strict=True):
        if not each.size:
            raise DataError(f"{found.path} has no spectrum with the id {name!r}")
    row = np.concatenate(rows)
    _digest_of(found)
    return Queries(id=found.id[row], flag=found.flag[row], vectors=found.rows(row), row=row)


def _of_vectors(found: Catalogue, given: Catalogue) -> Queries:
    _check_model(found, _digest_of(given), str(given.path))
    vectors = np.concatenate(list(given.blocks()))
    return Queries(id=given.id, flag=given.flag, vectors=vectors)


def _of_spectra(
    found: Catalogue,
    model: str | Path,
    dtype: DtypeChoice,
    spectra: Sequence[Path],
    options: Options,
    out: Path,
    say: Say,
) -> Queries:
    """Embed spectra; files that cannot be read are left out and reported."""
    work = embed_work(model, False, dtype, options)
    _check_model(found, str(work.meta["digest"]), f"the model {model}")
    parts: list[Columns] = []
    refused: list[tuple[str, str]] = []
    for sources in make_plan(spectra, work.options, out=out, split_prepared=True).chunks:
        columns, others = columns_of(work, read_chunk(sources, work.options))
        parts += [columns] if columns else []
        refused += others
    if not parts:
        raise DataError(refused[0][1])
    for _, reason in refused:
        say(f"left out: {reason}")
    joined = stack_columns([{name: part[name] for name in ("id", "flag")} for part in parts])
    vectors = np.concatenate([part[VECTORS] for part in parts])
    return Queries(id=joined["id"], flag=joined["flag"], vectors=vectors)


def _digest_of(catalogue: Catalogue) -> str:
    digest = str(catalogue.meta.get("digest") or "")
    if not digest:
        raise ConfigError(f"{catalogue.path} does not say which model made its vectors")
    return digest


def _check_model(found: Catalogue, digest: str, what: str) -> None:
    """Refuse to compare vectors of different models, which have nothing to do with each other."""
    own, name = _digest_of(found), found.meta.get("model", "")
    if own != digest:
        raise ConfigError(
            f"{found.path} holds vectors of the model {name} (digest {own[:12]}), not those of {what} (digest"
            f" {digest[:12]}): vectors of different models cannot be compared"
        )


def _with_vectors(queries: Queries, say: Say) -> Queries:
    """Leave out queries without a vector."""
    known = normalised(queries.vectors)[1]
    without = Counter(queries.flag[~known].tolist())
    reasons = ", ".join(f"{count} flagged {flag!r}" for flag, count in without.items())
    if not known.any():
        raise DataError(f"no query has a vector to compare: {reasons}")
    if without:
        say(f"{without.total()} of {len(known)} queries have no vector and are left out: {reasons}")
    keep = np.flatnonzero(known)
    row = None if queries.row is None else queries.row[keep]
    return Queries(id=queries.id[keep], flag=queries.flag[keep], vectors=queries.vectors[keep], row=row)


def _search(found: Catalogue, queries: Queries, nearest: int, exact: bool, say: Say) -> Neighbours:
    """Compare all vectors if they are few, or use the index."""
    count = min(nearest, len(found))
    many = len(found) > EXACT_ROWS and not exact
    if many and not has_hnswlib():
        say(
            f"comparing all {len(found):,} vectors; for an index of them install hnswlib:"
            " pip install 'specjax[similar]'"
        )
    if not many or not has_hnswlib():
        return exact_neighbours(queries.vectors, found.blocks(), count, without=queries.row)
    return _index_of(found, say)(queries.vectors, count, without=queries.row)


def _index_of(found: Catalogue, say: Say) -> Index:
    """Load the index of a catalogue, or make and keep it."""
    path = found.path.with_name(f"{found.path.name}.hnsw")
    try:
        return Index.load(path, found.content, found.width)
    except DataError as error:
        say(f"{error}: making it for {len(found):,} vectors, once; --exact does without")
    index = Index.build(found.blocks(), len(found), found.width, say=say)
    try:
        index.save(path, found.content)
    except OSError as error:
        say(f"the index cannot be kept as {path}: {error.strerror}")
    return index


def _columns(found: Catalogue, queries: Queries, neighbours: Neighbours) -> dict[str, Any]:
    """Return the columns of the table, without places that no vector takes."""
    query, place = np.nonzero(neighbours.row >= 0)
    row = neighbours.row[query, place]
    return {
        "query": queries.id[query],
        "query_flag": queries.flag[query],
        "rank": place + 1,
        "id": found.id[row],
        "row": row,
        "similarity": neighbours.similarity[query, place],
        "flag": found.flag[row],
    }
