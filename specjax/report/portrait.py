"""The picture of one spectrum: as read, as the model sees it, and how far the model reproduces it.

From top to bottom: the flux with its uncertainty, its continuum and what is masked; the normalised flux on
the grid of the model with the model's reconstruction; and their difference. Colours are distinguishable with
any colour vision.
"""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from specjax.report.metrics import robust_sigma
from specjax.report.style import BLUE, COLUMN, INK, PAGE, VERMILION, paper_figure, save_figure
from specjax.typing import BoolArray, FloatArray
from specjax.wavelength import LAMOST_WAVELENGTH

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LINES = {
    "Hδ": 4102.89,
    "Ca I": 4227.92,
    "G": 4305.6,
    "Hγ": 4341.68,
    "Hβ": 4862.68,
    "Mg b": 5176.0,
    "Fe I": 5271.0,
    "Fe I ": 5329.5,  # a second one; names are unique
}
"""Features by which a person sees whether a spectrum is at rest, vacuum Angstrom."""

MASKED, BAND = "#D9D9D9", "#9CC9E6"
_MANY_ERRORS = 5.0  # standard deviations that the axis of residuals shows, at least


@dataclass(frozen=True, kw_only=True, eq=False)
class Observed:
    """A spectrum as read.

    Attributes:
        wavelength: (p,) vacuum Angstrom.
        flux: (p,) in any unit.
        error: (p,) standard deviation, NaN where it is unknown; None without uncertainties.
        masked: (p,) pixels that are not used.
        continuum_wavelength: (m,) vacuum Angstrom.
        continuum: (m,) NaN where there is none.
    """

    wavelength: FloatArray
    flux: FloatArray
    error: FloatArray | None
    masked: BoolArray
    continuum_wavelength: FloatArray
    continuum: FloatArray


@dataclass(frozen=True, kw_only=True, eq=False)
class Portrait:
    """What is drawn of a spectrum.

    Attributes:
        title: the star.
        about: where it comes from.
        labels: one text per label.
        warning: what is wrong with the spectrum; "" if nothing is.
        model: name of what made labels and reconstruction.
        observed: the spectrum as read; None for one that was read from a model grid.
        flux: (1462,) normalised flux on the LAMOST grid.
        error: (1462,) its standard deviation, NaN where it is unknown; None without uncertainties.
        masked: (1462,) pixels that are not used.
        reconstruction: (1462,) the model's; None if it has none.
    """

    title: str
    about: str
    labels: Sequence[str]
    warning: str
    model: str
    observed: Observed | None
    flux: FloatArray
    error: FloatArray | None
    masked: BoolArray
    reconstruction: FloatArray | None


def plot_portrait(path: str | Path, portrait: Portrait, *, column: bool = False) -> list[Path]:
    """Draw the picture and return the paths of the PNG and of the PDF.

    Args:
        path: of either; the other is beside it.
        portrait: what is drawn.
        column: fit one column of a journal, else both.
    """
    heights = {"observed": 2.0, "model": 2.2, "residual": 1.0}
    names = [name for name in heights if _has(portrait, name)]
    width = COLUMN if column else PAGE
    text = _heading(portrait, 58 if column else 120)
    scale = 0.72 if column else 0.85
    height = scale * sum(heights[name] for name in names) + 0.14 * len(text) + 0.75
    with paper_figure(width, height) as figure:
        axes = figure.subplots(len(names), 1, height_ratios=[heights[name] for name in names], squeeze=False)
        by_name = dict(zip(names, axes[:, 0], strict=True))
        if portrait.observed is not None:
            _draw_observed(by_name["observed"], portrait.observed, column)
        _draw_model(by_name["model"], portrait, column)
        if portrait.reconstruction is not None:
            _draw_residual(by_name["residual"], portrait)
            by_name["model"].tick_params(labelbottom=False)
            by_name["residual"].sharex(by_name["model"])
        axes[-1, 0].set_xlabel("vacuum wavelength (Å)")
        figure.align_ylabels()
        _write_heading(figure, text, portrait)
        return save_figure(figure, Path(path).with_suffix(".png"))


def _has(portrait: Portrait, panel: str) -> bool:
    return {
        "observed": portrait.observed is not None,
        "model": True,
        "residual": portrait.reconstruction is not None,
    }[panel]


def _heading(portrait: Portrait, width: int) -> list[tuple[str, str, str]]:
    """Return (text, colour, weight) of the lines above the panels."""
    lines = [(portrait.title, INK, "bold")]
    lines += [(line, "#555555", "normal") for line in textwrap.wrap(portrait.about, width)]
    lines += [(line, INK, "normal") for line in _wrapped(portrait.labels, width)]
    lines += [(line, VERMILION, "bold") for line in textwrap.wrap(portrait.warning, width)]
    return lines


def _wrapped(texts: Sequence[str], width: int) -> list[str]:
    """Join texts to lines without breaking any."""
    lines: list[str] = []
    for text in texts:
        if lines and len(lines[-1]) + len(text) + 4 <= width:
            lines[-1] += f"    {text}"
        else:
            lines.append(text)
    return lines


def _write_heading(figure: "Figure", lines: Sequence[tuple[str, str, str]], portrait: Portrait) -> None:
    """Write lines above the panels, and leave room for them."""
    height = figure.get_size_inches()[1]
    step, top = 0.14 / height, 1 - 0.05 / height
    for place, (text, colour, weight) in enumerate(lines):
        figure.text(0.02, top - place * step, text, color=colour, weight=weight, fontsize=8, va="top")
    engine = figure.get_layout_engine()
    assert engine is not None
    engine.set(rect=(0, 0, 1, top - len(lines) * step))  # type: ignore[call-arg]


def _draw_observed(axis: "Axes", observed: Observed, column: bool) -> None:
    x, scale = observed.wavelength, _power_of_ten(observed.flux[~observed.masked])
    _shade(axis, x, observed.masked)
    flux = np.where(observed.masked, np.nan, observed.flux) / scale
    if observed.error is not None:
        error = observed.error / scale
        axis.fill_between(x, flux - error, flux + error, color=BAND, lw=0, label="± error", step="mid")
    axis.plot(x, flux, color=INK, lw=0.5, label="flux as read", drawstyle="steps-mid")
    known = np.isfinite(observed.continuum)
    axis.plot(
        observed.continuum_wavelength, np.where(known, observed.continuum, np.nan) / scale,
        color=VERMILION, lw=1.3, ls=(0, (4, 1)), label="continuum",
    )  # fmt: skip
    ends = LAMOST_WAVELENGTH[0], LAMOST_WAVELENGTH[-1]
    axis.axvspan(*ends, ymax=0.02, color=BLUE, lw=0, label="range of the model")
    shown = np.isfinite(flux)
    axis.set_xlim(x[0], x[-1])
    axis.set_ylim(*_robust_limits(flux[shown], observed.continuum[known] / scale))
    power = round(np.log10(scale))
    unit = "" if power == 0 else rf" ($10^{{{power}}}$)"
    axis.set_ylabel(f"flux as read{unit}")
    _add_legend(axis, column)


def _draw_model(axis: "Axes", portrait: Portrait, column: bool) -> None:
    x, flux = LAMOST_WAVELENGTH, np.where(portrait.masked, np.nan, portrait.flux)
    _shade(axis, x, portrait.masked)
    if portrait.error is not None:
        axis.fill_between(
            x, flux - portrait.error, flux + portrait.error, color=BAND, lw=0, step="mid", label="± error"
        )
    axis.plot(x, flux, color=INK, lw=0.5, drawstyle="steps-mid", label="over the continuum")
    if portrait.reconstruction is not None:
        axis.plot(
            x,
            portrait.reconstruction,
            color=VERMILION,
            lw=0.8,
            alpha=0.9,
            label=f"reconstruction by {portrait.model}",
        )
    axis.set_xlim(x[0], x[-1])
    other = np.array([]) if portrait.reconstruction is None else portrait.reconstruction
    low, high = _robust_limits(flux[np.isfinite(flux)], other)
    axis.set_ylim(low, high + 0.16 * (high - low))
    _name_lines(axis, column)
    axis.set_ylabel("normalised flux")
    _add_legend(axis, column)


def _draw_residual(axis: "Axes", portrait: Portrait) -> None:
    assert portrait.reconstruction is not None
    x = LAMOST_WAVELENGTH
    residual = np.where(portrait.masked, np.nan, portrait.flux - portrait.reconstruction)
    known = residual[np.isfinite(residual)]
    scatter = float(robust_sigma(known)) if known.size else 0.0
    _shade(axis, x, portrait.masked)
    if portrait.error is not None:
        axis.fill_between(x, -portrait.error, portrait.error, color=BAND, lw=0, step="mid")
    axis.plot(x, residual, color=INK, lw=0.5, drawstyle="steps-mid")
    axis.axhline(0, color=VERMILION, lw=0.8)
    reach = max(
        _MANY_ERRORS * scatter, 1.1 * float(np.percentile(np.abs(known), 99.7)) if known.size else 0.0
    )
    axis.set_ylim(-(reach or 0.1), reach or 0.1)
    axis.set_ylabel("residual")
    axis.text(
        0.99, 0.05, f"robust scatter {scatter:.3f}", transform=axis.transAxes, ha="right", va="bottom",
        fontsize=7, bbox={"facecolor": "white", "alpha": 0.8, "lw": 0, "pad": 1.0},
    )  # fmt: skip


def _add_legend(axis: "Axes", column: bool) -> None:
    """Write the legend above the panel, where it covers nothing."""
    axis.legend(
        loc="lower left", bbox_to_anchor=(-0.01, 0.99), ncols=2 if column else 5, frameon=False,
        handlelength=1.3, borderpad=0.1, columnspacing=1.0, handletextpad=0.5, labelspacing=0.2,
    )  # fmt: skip


def _name_lines(axis: "Axes", column: bool) -> None:
    """Mark spectral features at the upper edge."""
    for name, line in LINES.items():
        if column and name in ("G", "Fe I"):
            continue  # there is no room for two names side by side
        axis.axvline(line, ymin=0.86, ymax=0.90, color=INK, lw=0.6)
        axis.text(
            line,
            0.915,
            name.strip(),
            transform=axis.get_xaxis_transform(),
            ha="center",
            va="bottom",
            fontsize=6,
        )


def _shade(axis: "Axes", x: FloatArray, masked: BoolArray) -> None:
    """Shade runs of masked pixels over the whole height."""
    edges = np.concatenate([[x[0]], 0.5 * (x[1:] + x[:-1]), [x[-1]]])
    change = np.flatnonzero(np.diff(np.concatenate([[False], masked, [False]]).astype(np.int8)))
    for place, (start, stop) in enumerate(change.reshape(-1, 2)):
        axis.axvspan(
            edges[start], edges[stop], color=MASKED, lw=0, zorder=0, label="masked" if not place else None
        )


def _robust_limits(flux: FloatArray, other: FloatArray) -> tuple[float, float]:
    """Return limits of an axis that a few bad pixels do not widen."""
    other = other[np.isfinite(other)]
    if not flux.size and not other.size:
        return 0.0, 1.0
    low, high = np.percentile(flux, (0.02, 99.8)) if flux.size else (np.inf, -np.inf)
    if other.size:
        low, high = min(low, other.min()), max(high, other.max())
    margin = 0.08 * (high - low) or 0.1
    return float(low - margin), float(high + 2 * margin)


def _power_of_ten(flux: FloatArray) -> float:
    """Return the power of ten of flux that would be awkward on an axis, else 1."""
    size = float(np.median(np.abs(flux))) if flux.size else 0.0
    if not size or 0.01 <= size < 1000:
        return 1.0
    return float(10.0 ** np.floor(np.log10(size)))
