"""Prediction of labels for any number of spectra, from the user's files to a table."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

from specjax.adapt.predict import (
    calibration_of,
    predict_labels,
    predict_unadapted,
    preparation_of,
    prepared_as,
)
from specjax.checkpoints import load_adapter
from specjax.checkpoints.folders import MANIFEST
from specjax.checkpoints.hub import HubAddress
from specjax.errors import ConfigError
from specjax.foundation import DtypeChoice, Foundation, load
from specjax.pipeline.cluster import check_cluster
from specjax.pipeline.output import check_format
from specjax.pipeline.parts import Columns
from specjax.pipeline.run import run
from specjax.pipeline.work import Work, about_model, located, one_spectrum, raw_options
from specjax.plurals import counted
from specjax.prepare import Options
from specjax.preprocess import to_lamost
from specjax.progress import Say, silent

_DEPTH = 4  # of RUN/adapters/TARGET/CONFIGURATION/LABEL
_NO_ERRORS = "the labels have no errors: the model folder does not know its scatter; an adapter knows its own"


def predict_survey(
    *,
    model: str | Path,
    spectra: Sequence[Path],
    out: Path,
    adapter: Path | Sequence[Path] | None = None,
    head: str | None = None,
    labels: Sequence[str] | None = None,
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
    """Predict the labels of all spectra and write a table.

    Files are read in chunks, and finished chunks are kept beside `out` until the end, so that the same call
    resumes a run that was stopped. Memory is bounded for any number of spectra, except for the table itself.
    Files that cannot be read are left out and listed in a table beside `out`, named .report.ecsv.

    A script that calls this with more than one worker needs `if __name__ == "__main__":`, because the workers
    import it.

    Args:
        model: a model folder, or "mini".
        spectra: files and folders that `surveys.read` takes, patterns such as "*.fits", and "@list.txt", a
            text file of these; files that `specjax prepare` has written are not preprocessed again.
        out: the table to write, .ecsv, .fits, .vot, .parquet, .csv or .h5; replaced if it exists.
        adapter: an adapter folder or its address on the hub, made from this model, or several for a label
            each, or a folder that holds these. Without one, the model as it is predicts all its labels.
        head: "mlp1" or "mlp2", without an adapter only; by default "mlp2" if the model has it.
        labels: some of the model's labels, without an adapter only; by default all.
        fwhm: resolution of raw spectra in Angstrom, as in `to_lamost`, without an adapter only: an adapter
            knows the preprocessing of the spectra that it was trained on.
        survey: as in `surveys.read`.
        wavelength_medium: likewise.
        wavelength_unit: likewise.
        workers: number of processes that read and preprocess, by default the number of cores; with 1, no
            process is started.
        dtype: type of the model's matrix products, as in `foundation.load`.
        dask: compute on a Dask cluster, instead of in this process: "local:N" for N processes of this
            machine, the address of a scheduler, or a scheduler file. See docs/cluster.md.
        partitioned: write a folder `out` of files part-00000.parquet, ... with the rows in order, which Dask,
            polars and pandas read as one table. Then memory is bounded for any number of spectra, and no
            columns are returned.
        dry_run: only say what would be done; no spectra are read, nothing is written, and no columns are
            returned.
        say: receives lines of progress.

    Returns:
        The columns (n,) of the table, one row per spectrum in the order of the files, see
        `adapt.predict.predict_labels` and `adapt.predict.predict_unadapted`.

    Raises:
        ConfigError: options contradict each other or prepared files, or an unfinished run with other files or
            options exists.
        DataError: the format is unknown, there are no files, or none is readable.
        ModelError: the model or the adapter is invalid.
        SpecjaxError: worker processes died, or a Dask worker does not have the same files or version.
    """
    check_format(Path(out), partitioned=partitioned)
    if dask is not None:
        check_cluster(dask)
    options = raw_options(survey, wavelength_medium, wavelength_unit, fwhm)
    given = [adapter] if isinstance(adapter, str | Path) else list(adapter or ())
    adapters = adapter_folders(given)
    work = _predict_work(model, adapters, head, dtype, options, labels)
    for note in () if dry_run else work.notes:
        say(note)
    columns = run(
        work,
        spectra,
        Path(out),
        workers=workers,
        dask=dask,
        partitioned=partitioned,
        dry_run=dry_run,
        say=say,
    )
    ids = columns["id"].tolist() if work.known and columns else []
    if known := sum(name in work.known for name in ids):
        say(
            f"{known} of {counted(len(ids), 'spectrum', 'spectra')} have the id of a star to whose"
            " label the adapter was fitted: there, predictions are closer to the label than for new stars;"
            " predictions.ecsv of the run has those that did not use it"
        )
    return columns


def _predict_work(
    model: str | Path,
    adapters: Sequence[Path],
    head: str | None,
    dtype: DtypeChoice,
    options: Options,
    labels: Sequence[str] | None = None,
) -> Work:
    """Load model and adapters; arguments as of `predict_survey`."""
    foundation, fwhm = load(model, dtype=dtype), options.fwhm_from
    about = about_model(foundation, model)
    record = {"command": "predict", "model": foundation.digest, "dtype": foundation.dtype}
    chosen = cast(DtypeChoice, foundation.dtype)  # for workers, which may have other devices
    absolute = [Path(located(path)) for path in adapters]
    again = partial(_predict_work, located(model), absolute, head, chosen, options, labels)
    if not adapters:
        head, names = head or foundation.default_head, checked_labels(foundation, labels)
        foundation.predict(one_spectrum(foundation), head)  # a head that is absent is an error before the run
        return Work(
            compute=lambda rows: predict_unadapted(foundation, to_lamost(rows, fwhm=fwhm), head, names),
            check=lambda rows: to_lamost(rows, fwhm=fwhm),
            options=options,
            record={**record, "adapter": None, "head": head, "labels": list(names)},
            meta={**about, "head": head},
            again=again,
            notes=() if foundation.label_scatter(head) else (_NO_ERRORS,),
        )
    if head is not None or fwhm is not None or labels is not None:
        raise ConfigError(
            "an adapter has its own heads, label and preprocessing: leave out head, label and fwhm"
        )
    stored = [load_adapter(path, base=foundation.digest) for path in adapters]
    check_together(adapters, [each.config for each in stored])
    first = stored[0].config
    wanted = preparation_of(first)
    pairs = [(each.arrays, each.config) for each in stored]
    digests = [each.digest for each in stored]
    return Work(
        compute=lambda rows: predict_labels(foundation, rows, pairs),
        check=lambda rows: prepared_as(rows, first),
        options=replace(
            options,
            **_wavelengths(first, options),
            method=wanted.get("method"),
            fwhm_from=wanted.get("fwhm"),
            fwhm_to=wanted.get("fwhm_to"),
            velocity_column=wanted.get("velocity_column"),
        ),
        record={**record, "adapter": digests[0] if len(digests) == 1 else digests, "head": None},
        meta={
            **about,
            "adapter": ", ".join(str(HubAddress.parse(path) or path) for path in adapters),
            **_about_adapters([each.config for each in stored]),
        },
        again=again,
        known=frozenset(name for each in stored for name in each.config.get("labelled", ())),
        notes=tuple(
            f"{path} stores no calibration: the table has no intervals, and its errors are nearly constant"
            for path, each in zip(adapters, stored, strict=True)
            if calibration_of(each.config) is None
        ),
    )


def checked_labels(model: Foundation, labels: Sequence[str] | None) -> tuple[str, ...]:
    """Return the labels to predict, by default all of the model.

    Raises:
        ConfigError: the model does not have one of them.
    """
    known = model.config.labels
    unknown = [name for name in labels or () if name not in known]
    if unknown:
        raise ConfigError(f"the model has no label {', '.join(unknown)}; it has {', '.join(known)}")
    return tuple(dict.fromkeys(labels or known))


def adapter_folders(given: Sequence[Path]) -> list[Path]:
    """Return the adapters that are named, or that lie in the folders that are named, such as a run folder.

    A folder that holds no adapter is returned as it is: loading it says what is wrong.
    """
    found: list[Path] = []
    for folder in map(Path, given):
        inside: list[Path] = []
        if not (folder / MANIFEST).is_file():
            paths = (path for depth in range(1, _DEPTH + 1) for path in folder.glob("*/" * depth + MANIFEST))
            visible = (path.parent for path in paths if not _is_hidden(path.relative_to(folder)))
            inside = sorted(visible)
        found += inside or [folder]
    return found


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def check_together(adapters: Sequence[Path], configs: Sequence[Mapping[str, Any]]) -> None:
    """Check that adapters can predict together.

    Raises:
        ConfigError: two of them predict one label, or were trained on spectra that were prepared otherwise.
    """
    seen: dict[str, Path] = {}
    for path, config in zip(adapters, configs, strict=True):
        label = config["label"]
        if label in seen:
            raise ConfigError(f"both {seen[label]} and {path} predict {label}: give --adapter one of them")
        seen[label] = path
        if preparation_of(config) != preparation_of(configs[0]):
            raise ConfigError(
                f"the spectra of {adapters[0]} and of {path} were prepared in different ways: predict with"
                " one after the other"
            )
        if (config.get("wavelength") or {}) != (configs[0].get("wavelength") or {}):
            raise ConfigError(
                f"{adapters[0]} and {path} were made with wavelengths in another medium or unit: predict with"
                " one after the other"
            )


def _wavelengths(config: Mapping[str, Any], options: Options) -> dict[str, Any]:
    """Return the medium and unit, as the adapter was made with, to take for files that declare none."""
    made_with = config.get("wavelength") or {}
    given = {"assumed_medium": options.wavelength_medium, "assumed_unit": options.wavelength_unit}
    known = {"assumed_medium": made_with.get("medium"), "assumed_unit": made_with.get("unit")}
    return {name: value for name, value in known.items() if value is not None and given[name] is None}


def _about_adapters(configs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what the metadata of the output say of the adapters; of several, with the label in the name."""
    about: dict[str, Any] = {}
    for config in configs:
        known = {name: config[name] for name in ("configuration", "target", "seeds", "sigma")}
        calibration = calibration_of(config)
        known["intervals"] = None if calibration is None else calibration.summary
        prefix = "" if len(configs) == 1 else f"{config['label']}_"
        about |= {f"{prefix}{name}": value for name, value in known.items() if value is not None}
    return about
