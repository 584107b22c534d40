"""Embedding of any number of spectra, from the user's files to a file of vectors."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import cast

from specjax.foundation import DtypeChoice, load
from specjax.pipeline.cluster import check_cluster
from specjax.pipeline.output import check_format
from specjax.pipeline.parts import Columns
from specjax.pipeline.run import run
from specjax.pipeline.work import Work, about_model, located, of_usable, one_spectrum, raw_options
from specjax.prepare import Options
from specjax.preprocess import to_lamost
from specjax.progress import Say, silent
from specjax.spectra import Spectra


def embed_survey(
    *,
    model: str | Path,
    spectra: Sequence[Path],
    out: Path,
    tokens: bool = False,
    fwhm: float | None = None,
    survey: str | None = None,
    wavelength_medium: str | None = None,
    wavelength_unit: str | None = None,
    workers: int | None = None,
    dtype: DtypeChoice = "auto",
    dask: str | None = None,
    partitioned: bool = False,
    dry_run: bool = False,
    say: Say = silent,
) -> Columns:
    """Embed all spectra with a model and write their vectors.

    Chunks, interrupted runs, unreadable files and processes are as in `predict_survey`. Memory is bounded for
    any number of spectra if `out` is HDF5 or Parquet; a FITS table is made in memory.

    Args:
        model: a model folder, or "mini".
        spectra: files, folders, patterns and lists, as in `predict_survey`.
        out: the file to write, .h5, .parquet or .fits, with columns id (n,), vectors (n, d) float32, flag
            (n,) and masked_fraction (n,); replaced if it exists. Spectra that the flag marks as unusable have
            vectors of NaN.
        tokens: write all output tokens of the LAMOST encoder, as a column tokens (n, 146, d), in place of the
            vectors of `Foundation.embed`. Parquet holds them flat, with their shape in the metadata.
        fwhm: resolution of raw spectra in Angstrom, as in `to_lamost`.
        survey: as in `surveys.read`.
        wavelength_medium: likewise.
        wavelength_unit: likewise.
        workers: as in `predict_survey`.
        dtype: type of the model's matrix products, as in `foundation.load`.
        dask: as in `predict_survey`.
        partitioned: as in `predict_survey`.
        dry_run: only say what would be done; no spectra are read, nothing is written, and no columns are
            returned.
        say: receives lines of progress.

    Returns:
        The columns (n,) of the file, without vectors or tokens, in the order of the files.

    Raises:
        ConfigError: prepared files were prepared otherwise, or an unfinished run with other files or options
            exists.
        DataError: the format is unknown, there are no files, or none is readable.
        ModelError: the model is invalid, or has no encoder for LAMOST spectra.
        SpecjaxError: worker processes died, or a Dask worker does not have the same files or version.
    """
    check_format(Path(out), vectors=True, partitioned=partitioned)
    if dask is not None:
        check_cluster(dask)
    options = raw_options(survey, wavelength_medium, wavelength_unit, fwhm)
    work = embed_work(model, tokens, dtype, options)
    return run(
        work,
        spectra,
        Path(out),
        workers=workers,
        dask=dask,
        partitioned=partitioned,
        dry_run=dry_run,
        say=say,
    )


def embed_work(model: str | Path, tokens: bool, dtype: DtypeChoice, options: Options) -> Work:
    """Load the model and return what is done with every chunk; arguments as of `embed_survey`."""
    foundation, fwhm = load(model, dtype=dtype), options.fwhm_from
    chosen = cast(DtypeChoice, foundation.dtype)  # for workers, which may have other devices
    name, embed = ("tokens", foundation.tokens) if tokens else ("vectors", foundation.embed)
    # The model says how large a vector is, before there may be a chunk without any usable spectrum.
    shape = embed(one_spectrum(foundation)).shape[1:]

    def compute(rows: Spectra) -> Columns:
        rows = to_lamost(rows, fwhm=fwhm)
        vectors, flag, _ = of_usable(rows, shape, embed)
        return {
            "id": rows.id,
            name: vectors,
            "flag": flag,
            "masked_fraction": rows.meta["masked_fraction"],
        }

    return Work(
        compute=compute,
        check=lambda rows: to_lamost(rows, fwhm=fwhm),
        options=options,
        record={"command": "embed", "model": foundation.digest, "tokens": tokens, "dtype": foundation.dtype},
        meta=about_model(foundation, model),
        again=partial(embed_work, located(model), tokens, chosen, options),
        wide=(name,),
    )
