"""Translation of any number of spectra from one survey to the other, from files to a file of spectra."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal, cast

import numpy as np

from specjax.flags import Flag
from specjax.foundation import DtypeChoice, Foundation, load
from specjax.overwrite import check_replaceable
from specjax.pipeline.cluster import check_cluster
from specjax.pipeline.output import check_format
from specjax.pipeline.parts import Columns, read_columns
from specjax.pipeline.run import run
from specjax.pipeline.truth import ERRORS, Truth
from specjax.pipeline.work import Work, about_model, located, of_usable, one_spectrum, raw_options
from specjax.prepare import Options
from specjax.preprocess import to_gaia_xp, to_lamost
from specjax.progress import Say, silent
from specjax.report.translation import Example, plot_translation
from specjax.spectra import Spectra
from specjax.surveys.io.tables import write_table
from specjax.typing import StrArray
from specjax.wavelength import MODEL_GRIDS

Tower = Literal["lamost", "gaia_xp"]

SOURCE: dict[str, Tower] = {"gaia_xp": "lamost", "lamost": "gaia_xp"}
"""The survey that is translated, by the one that comes out."""

FLUX_UNITS = {"gaia_xp": "flux over that at 550 nm", "lamost": "flux over the continuum"}
"""What the translated flux is."""


def translate_survey(
    *,
    model: str | Path,
    spectra: Sequence[Path],
    out: Path,
    target: Tower,
    truth: Path | None = None,
    plots: int = 6,
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
    """Predict the spectra of one survey from those of the other with a model of both, and write them.

    Chunks, interrupted runs, unreadable files and processes are as in `predict_survey`; memory as in
    `embed_survey`.

    Args:
        model: the folder of a model with both towers and decoders, or "mini".
        spectra: files, folders, patterns and lists, as in `predict_survey`. For the target "lamost" they are
            files of Gaia XP spectra, or of spectra that cover 336-1020 nm if `fwhm` is given.
        out: the file to write, .h5, .npz, .parquet or .fits, with id (n,), flux (n, p) float32, wavelength in
            Angstrom, vacuum ((p,) in .h5 and .npz, else repeated in every row), flag (n,) and masked_fraction
            (n,) of what was translated. The flux of a spectrum that the flag marks as unusable is NaN; that
            of LAMOST-like spectra unlike the training spectra is given, and flagged as in `adapt.predict`.
        target: "gaia_xp", flux over that at 550 nm; or "lamost", flux over the continuum.
        truth: observed spectra of the target for some of the stars, a file or folder. The output then has the
            columns of `truth.Truth.compare`, which are also written to OUT.errors.ecsv.
        plots: number of spectra in the plot OUT.png and OUT.pdf; none if 0.
        fwhm: resolution of raw spectra in Angstrom, as in `to_lamost` and `to_gaia_xp`.
        survey: as in `surveys.read`.
        wavelength_medium: likewise.
        wavelength_unit: likewise.
        workers: as in `predict_survey`.
        dtype: type of the model's matrix products, as in `foundation.load`.
        dask: as in `predict_survey`.
        partitioned: as in `predict_survey`.
        dry_run: only say what would be done.
        say: receives lines of progress.

    Returns:
        The columns (n,) of the file, without the flux; none if `partitioned` or `dry_run`.

    Raises:
        ConfigError: prepared files were prepared otherwise, or an unfinished run with other files or options
            exists.
        DataError: the format is unknown, there are no files, or none is readable.
        ModelError: the model is invalid, or lacks an encoder or the decoders.
        SpecjaxError: worker processes died, or a Dask worker does not have the same files or version.
    """
    out = Path(out)
    check_format(out, vectors=True, partitioned=partitioned)
    check_replaceable(*_beside(out, truth is not None, plots))
    if dask is not None:
        check_cluster(dask)
    options = raw_options(survey, wavelength_medium, wavelength_unit, fwhm)
    observed = None if truth is None else Truth.read(truth, target)
    work = _work_with(observed, model, target, truth, dtype, replace(options, tower=SOURCE[target]))
    columns = run(
        work,
        spectra,
        out,
        workers=workers,
        dask=dask,
        partitioned=partitioned,
        dry_run=dry_run,
        say=say,
        look=partial(_plot, out, target, observed, plots, say),
    )
    if observed is not None and columns:
        _report(out, columns, say)
    return columns


def _beside(out: Path, errors: bool, plots: int) -> list[Path]:
    """Return the files that are written beside the translated spectra."""
    pictures = [out.with_suffix(".png"), out.with_suffix(".pdf")] if plots > 0 else []
    return [*pictures, *([out.with_suffix(".errors.ecsv")] if errors else [])]


def _translate_work(
    model: str | Path, target: Tower, truth: Path | None, dtype: DtypeChoice, options: Options
) -> Work:
    """Load the model and the truth, in another process; arguments as of `translate_survey`."""
    observed = None if truth is None else Truth.read(truth, target)
    return _work_with(observed, model, target, truth, dtype, options)


def _work_with(
    observed: Truth | None,
    model: str | Path,
    target: Tower,
    truth: Path | None,
    dtype: DtypeChoice,
    options: Options,
) -> Work:
    """Load the model; `observed` is what has been read of `truth`."""
    foundation, source, fwhm = load(model, dtype=dtype), options.tower, options.fwhm_from
    chosen = cast(DtypeChoice, foundation.dtype)  # for workers, which may have other devices
    # What the model lacks is an error before the run.
    foundation.translate(one_spectrum(foundation, source), source=source, target=target)
    grid = MODEL_GRIDS[target]

    def compute(rows: Spectra) -> Columns:
        rows = to_lamost(rows, fwhm=fwhm) if source == "lamost" else to_gaia_xp(rows)
        translate = partial(foundation.translate, target=target)
        flux, flag, usable = of_usable(rows, (grid.size,), translate)
        if usable.any():
            flag[usable] = _with_domain(foundation, rows[np.flatnonzero(usable)], flag[usable])
        errors = {} if observed is None else observed.compare(rows.id, flux)
        return {
            "id": rows.id,
            "flux": flux,
            "flag": flag,
            "masked_fraction": rows.meta["masked_fraction"],
            **errors,
        }

    return Work(
        compute=compute,
        # Only files on the LAMOST side are prepared in more than one way.
        check=lambda rows: to_lamost(rows, fwhm=fwhm) if source == "lamost" else None,
        options=options,
        record={
            "command": "translate",
            "model": foundation.digest,
            "target": target,
            "truth": None if observed is None else observed.digest,
            "dtype": foundation.dtype,
        },
        meta={
            **about_model(foundation, model),
            "survey": target,
            "flux_unit": FLUX_UNITS[target],
            "wavelength_medium": "vacuum",
        },
        again=partial(
            _translate_work,
            located(model),
            target,
            None if truth is None else Path(truth).absolute(),
            chosen,
            options,
        ),
        wide=("flux",),
        shared={"wavelength": grid},
    )


def _with_domain(model: Foundation, spectra: Spectra, flag: StrArray) -> StrArray:
    """Return the flags (n,) with those of LAMOST-like spectra unlike the training spectra."""
    if model.ood is None or (spectra.prepared or {}).get("tower") != "lamost":
        return flag
    outside = model.out_of_domain(model.backbone_features(spectra))
    return flag if outside is None else np.where(flag == Flag.GOOD, outside[1], flag)


def _report(out: Path, columns: Columns, say: Say) -> None:
    """Write the errors of the stars whose truth is known, and say how large they are."""
    known = columns["truth_pixels"] > 0
    if not known.any():
        say("no translated star is in the file of the truth: ids are compared")
        return
    table = out.with_suffix(".errors.ecsv")
    write_table(table, {name: columns[name][known] for name in ("id", *ERRORS, "flag")})
    usable = known & np.isfinite(columns["rms"])
    if usable.any():
        own, mean = (np.median(columns[name][usable]) for name in ("rms", "rms_of_mean"))
        say(
            f"median rms of {usable.sum()} stars {own:.4f}, of the mean of the other stars {mean:.4f}:"
            f" see {table}"
        )


def _plot(out: Path, target: Tower, truth: Truth | None, count: int, say: Say, parts: Sequence[Path]) -> None:
    """Plot some usable spectra of the first part that has any, those with a truth first."""
    if count < 1:
        return
    examples = next(filter(None, (_examples(path, truth, count) for path in parts)), [])
    if not examples:
        say("no spectrum could be translated, so that there is no plot")
        return
    for path in plot_translation(
        out.with_suffix(".png"), MODEL_GRIDS[target], examples, unit=FLUX_UNITS[target]
    ):
        say(f"plot {path}")


def _examples(path: Path, truth: Truth | None, count: int) -> list[Example]:
    """Choose spectra at equal steps from a part."""
    columns = read_columns(path)
    usable = np.isfinite(columns["flux"]).all(axis=1)
    if truth is not None and (usable & (columns["truth_pixels"] > 0)).any():
        usable &= columns["truth_pixels"] > 0
    rows = np.flatnonzero(usable)
    rows = (
        rows[np.unique(np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(int))]
        if len(rows)
        else rows
    )
    return [
        Example(
            id=str(columns["id"][row]),
            flux=columns["flux"][row],
            truth=None if truth is None else truth.flux_of(str(columns["id"][row])),
            flag=str(columns["flag"][row]),
            rms=float(columns["rms"][row]) if "rms" in columns else float("nan"),
        )
        for row in rows
    ]
