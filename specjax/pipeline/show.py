"""One spectrum in a picture, to check it before its labels are trusted."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from specjax.adapt.predict import predict_labels, predict_unadapted, preparation_of, prepared_as
from specjax.checkpoints import load_adapter
from specjax.errors import ConfigError, DataError, ModelError
from specjax.flags import USABLE, Flag
from specjax.foundation import Foundation, load
from specjax.overwrite import check_replaceable
from specjax.pipeline.predict import adapter_folders, check_together
from specjax.preprocess import to_lamost
from specjax.preprocess.to_grid import continuum_of
from specjax.preprocess.velocity import measure_velocity
from specjax.report.portrait import Observed, Portrait, plot_portrait
from specjax.spectra import Spectra
from specjax.surveys import read
from specjax.surveys.io.many import assuming
from specjax.typing import AnyArray, BoolArray, FloatArray
from specjax.units import LABELS, symbol_and_unit

_RELIABLE = 0.3  # correlation with the template of lines
_SUFFIXES = (".png", ".pdf", "")


def show_spectrum(
    *,
    spectrum: Path,
    out: Path,
    model: str | Path = "mini",
    adapter: Path | Sequence[Path] | None = None,
    head: str | None = None,
    id: str | None = None,
    row: int | None = None,
    column: bool = False,
    fwhm: float | None = None,
    survey: str | None = None,
    wavelength_medium: str | None = None,
    wavelength_unit: str | None = None,
) -> list[Path]:
    """Draw one spectrum: as read, as the model sees it, its reconstruction, and its labels with their errors.

    Args:
        spectrum: a file that `surveys.read` takes.
        out: the picture, .png or .pdf; both are written.
        model: a model folder, or "mini".
        adapter: an adapter folder, made from this model, whose label is shown, or several for a label each,
            or a folder that holds these. Without one, the labels are those of the model as it is.
        head: "mlp1" or "mlp2", without an adapter only.
        id: the spectrum of a file that holds several.
        row: likewise, its number, from 0.
        column: make the picture one column wide, else two.
        fwhm: resolution of the spectrum in Angstrom, as in `to_lamost`, without an adapter only.
        survey: as in `surveys.read`.
        wavelength_medium: likewise.
        wavelength_unit: likewise.

    Returns:
        The paths of the PNG and of the PDF.

    Raises:
        ConfigError: the file holds several spectra and none is chosen, or options contradict each other.
        DataError: the spectrum cannot be read or found.
        ModelError: the model or the adapter is invalid, or the model has no LAMOST tower.
    """
    if Path(out).suffix.lower() not in _SUFFIXES:
        raise DataError(f"cannot write {Path(out).name}: a picture is .png and .pdf")
    check_replaceable(*(Path(out).with_suffix(suffix) for suffix in _SUFFIXES))
    given = [adapter] if isinstance(adapter, str | Path) else list(adapter or ())
    if given and (head is not None or fwhm is not None):
        raise ConfigError("an adapter has its own heads and preprocessing: leave out head and fwhm")
    foundation, folders = load(model), adapter_folders(given)
    stored = [load_adapter(path, base=foundation.digest) for path in folders]
    configs = [each.config for each in stored]
    check_together(folders, configs)
    made_with = (configs[0].get("wavelength") or {}) if configs else {}
    with assuming(made_with.get("medium"), made_with.get("unit")):
        spectra = read(spectrum, survey, wavelength_medium=wavelength_medium, wavelength_unit=wavelength_unit)
    one = _chosen(spectra, Path(spectrum), id, row)
    if not stored:
        how: dict[str, Any] = {"fwhm": fwhm}
        lamost = to_lamost(one, **how)
        columns, made_by = _labels_as_is(foundation, lamost, head)
    else:
        how = {name: value for name, value in preparation_of(configs[0]).items() if name != "tower"}
        lamost = prepared_as(one, configs[0])
        columns = predict_labels(foundation, one, [(each.arrays, each.config) for each in stored])
        kinds = " and ".join(dict.fromkeys(config["configuration"] for config in configs))
        made_by = f"{kinds} on {foundation.config.name}"
    portrait = _portrait(foundation, Path(spectrum), one, lamost, columns, made_by, how)
    return plot_portrait(out, portrait, column=column)


def _chosen(spectra: Spectra, path: Path, id: str | None, row: int | None) -> Spectra:
    """Return the one spectrum of a file that is meant."""
    if spectra.survey == "gaia_xp" or (spectra.prepared or {}).get("tower") == "gaia_xp":
        raise DataError(f"{path} holds Gaia XP spectra; show takes spectra for the LAMOST tower of a model")
    if id is not None and row is not None:
        raise ConfigError("a spectrum is chosen by its id or by its row, not by both")
    if id is not None:
        return spectra.select([id])
    if row is not None:
        if not 0 <= row < len(spectra):
            raise DataError(f"{path} has the rows 0 to {len(spectra) - 1}, and no row {row}")
        return spectra[row]
    if len(spectra) > 1:
        some = ", ".join(spectra.id[:3].tolist())
        raise ConfigError(f"{path} holds {len(spectra)} spectra: choose one by --id ({some}, ...) or --row")
    return spectra


def _labels_as_is(model: Foundation, lamost: Spectra, head: str | None) -> tuple[Mapping[str, AnyArray], str]:
    """Return the columns that the model as it is predicts, and what made them."""
    chosen = head or model.default_head
    if chosen not in model.params and head is None:  # a bare encoder has no labels, but can be shown
        columns = {name: lamost.meta[name] for name in ("flag", "masked_fraction")}
        return {**columns, "distance": np.full(1, np.nan)}, f"{model.config.name}, without label heads"
    return predict_unadapted(model, lamost, chosen), f"{model.config.name} as it is, head {chosen}"


def _portrait(
    model: Foundation,
    path: Path,
    one: Spectra,
    lamost: Spectra,
    columns: Mapping[str, AnyArray],
    made_by: str,
    how: Mapping[str, Any],
) -> Portrait:
    """Collect what is drawn of a spectrum (1, p)."""
    flag, mask = str(columns["flag"][0]), ~lamost.valid[0]
    return Portrait(
        title=str(one.id[0]),
        about=_about(path, one, lamost, made_by),
        labels=label_texts({name: column[0] for name, column in columns.items()}),
        warning="" if flag == Flag.GOOD else f"flag: {flag}",
        model=model.config.name,
        observed=_observed(one, how) if one.prepared is None else None,
        flux=np.asarray(lamost.flux[0], np.float64),
        error=_error(lamost, mask),
        masked=mask,
        reconstruction=_reconstruction(model, lamost),
    )


def _about(path: Path, one: Spectra, lamost: Spectra, made_by: str) -> str:
    """Describe a spectrum in a line."""
    parts = [path.name, *([one.survey] if one.survey not in ("", path.name, path.stem) else [])]
    snr = one.meta.get("snr")
    if snr is not None and snr.dtype.kind == "f" and np.isfinite(snr[0]):
        parts.append(f"S/N {snr[0]:.0f} per pixel")
    parts.append(f"{100 * float(lamost.meta['masked_fraction'][0]):.0f}% masked")
    velocity, correlation = measure_velocity(lamost.flux, lamost.mask)
    if correlation[0] > _RELIABLE:
        parts.append(f"velocity of the lines {velocity[0]:+.0f} km/s")
    return ", ".join([*parts, f"labels by {made_by}"])


def label_texts(row: Mapping[str, Any]) -> list[str]:
    """Return a text for every label of a row of predictions, with its interval or error where it is known.

    >>> label_texts({"id": "a", "teff": 5741.3, "fe_h": -0.514, "fe_h_err": 0.12, "flag": "good"})
    ['Teff = 5741 K', '[Fe/H] = −0.51 ± 0.12 dex']
    >>> label_texts({"teff": 5741.3})
    ['Teff = 5741 K', '(errors unknown)']
    """
    labels = [name for name in row if name in LABELS]
    texts, with_error = [], False
    for label in labels:
        text, known = _label_text(label, row)
        texts.append(text)
        with_error |= known
    return texts if with_error or not labels else [*texts, "(errors unknown)"]


def _label_text(label: str, row: Mapping[str, Any]) -> tuple[str, bool]:
    """Return the text of one label, and whether its error is known."""
    symbol, unit = symbol_and_unit(label)
    digits = 0 if unit == "K" else 2
    names = (label, *(f"{label}_{end}" for end in ("err", "lo", "hi")))
    numbers = np.array([float(row.get(name, np.nan)) for name in names])
    value, error, low, high = (f"{number:.{digits}f}".replace("-", "−") for number in numbers)
    known = np.isfinite(numbers)
    if not known[0]:
        return f"{symbol} unknown", True
    if known[2:].all():
        return f"{symbol} = {value} [{low}, {high}] {unit}", True
    return f"{symbol} = {value} ± {error} {unit}" if known[1] else f"{symbol} = {value} {unit}", bool(
        known[1]
    )


def _observed(one: Spectra, how: Mapping[str, Any]) -> Observed:
    """Return the spectrum as read, with the continuum that preprocessing fits."""
    options = {name: how.get(name) for name in ("fwhm", "fwhm_to", "velocity_column")}
    continuum = continuum_of(one, **options)
    vacuum = one.to_vacuum()
    masked = ~vacuum.valid[0]
    grid = np.atleast_2d(vacuum.wavelength)[0]
    spikes = np.interp(grid, np.atleast_2d(continuum.wavelength)[0], continuum.masked[0], 0, 0) == 1
    return Observed(
        wavelength=grid,
        flux=vacuum.flux[0],
        error=_error(vacuum, masked),
        masked=masked | spikes,
        continuum_wavelength=np.atleast_2d(continuum.wavelength)[0],
        continuum=continuum.level[0],
    )


def _error(spectra: Spectra, masked: BoolArray) -> FloatArray | None:
    """Return the standard deviation (p,) of the flux of one spectrum, if it is known."""
    if not spectra.has_ivar:
        return None
    ivar = np.where(masked, np.nan, np.asarray(spectra.ivar[0], np.float64))
    return 1.0 / np.sqrt(np.where(ivar > 0, ivar, np.nan))


def _reconstruction(model: Foundation, lamost: Spectra) -> FloatArray | None:
    """Return the flux that the model makes of the spectrum (1, p), if it can."""
    if not np.isin(lamost.meta["flag"], USABLE).any():
        return None
    try:
        return np.asarray(model.reconstruct(lamost)[0], np.float64)
    except ModelError:
        if "lamost" not in model.params:
            raise
        return None  # a model without decoders
