"""A plot of translated spectra, with the observed ones of the same stars where these are known."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from specjax.flags import Flag
from specjax.report.style import COLUMN, INK, PAGE, VERMILION, paper_figure, save_figure
from specjax.typing import AnyArray, FloatArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_NANOMETRES_FROM = 2000.0  # width of a range in Angstrom beyond which nanometres read better


@dataclass(frozen=True, kw_only=True, eq=False)
class Example:
    """A translated spectrum.

    Attributes:
        id: the star.
        flux: (p,) translated.
        truth: (p,) observed, NaN where it is not known; None for a star without.
        flag: of the spectrum that was translated.
        rms: root mean square of their difference, NaN if it is not known.
    """

    id: str
    flux: AnyArray
    truth: FloatArray | None = None
    flag: str = Flag.GOOD
    rms: float = float("nan")


def plot_translation(
    path: str | Path, wavelength: FloatArray, examples: Sequence[Example], *, unit: str
) -> list[Path]:
    """Plot spectra, one panel each, and return the paths of the PNG and of the PDF.

    Args:
        path: the PNG; the PDF is beside it.
        wavelength: (p,) Angstrom, vacuum.
        examples: at least one.
        unit: what the flux is, for the axis.
    """
    columns = 1 if len(examples) == 1 else 2
    rows = -(-len(examples) // columns)
    with paper_figure(COLUMN if columns == 1 else PAGE, 0.55 + 1.45 * rows) as figure:
        grid = figure.subplots(rows, columns, sharex=True, squeeze=False)
        for axis, example in zip(grid.ravel(), examples, strict=False):
            _draw(axis, wavelength, example)
        for axis in grid.ravel()[len(examples) :]:
            axis.remove()
        below = [column[: -(-(len(examples) - index) // columns)][-1] for index, column in enumerate(grid.T)]
        for axis in below:
            axis.tick_params(labelbottom=True)
        name = "nm" if _in_nanometres(wavelength) else "Å"
        figure.supxlabel(f"vacuum wavelength ({name})", fontsize=8)
        figure.supylabel(unit, fontsize=8)
        handles, texts = grid[0, 0].get_legend_handles_labels()
        figure.legend(handles, texts, loc="outside upper center", ncols=2, frameon=False)
        return save_figure(figure, Path(path).with_suffix(".png"))


def _draw(axis: "Axes", wavelength: FloatArray, example: Example) -> None:
    x = wavelength / 10 if _in_nanometres(wavelength) else wavelength
    if example.truth is not None:
        axis.plot(x, example.truth, color=INK, lw=0.9, label="observed")
    axis.plot(x, example.flux, color=VERMILION, lw=0.9, ls=(0, (4, 1)), label="translated")
    axis.set_xlim(x[0], x[-1])
    low, high = np.nanmin(example.flux), np.nanmax(example.flux)
    if example.truth is not None:  # a bad pixel of the observation does not set the scale
        some = np.nanpercentile(example.truth, (0.5, 99.5))
        low, high = min(low, some[0]), max(high, some[1])
    margin = 0.08 * (high - low) or 0.1
    axis.set_ylim(low - margin, high + 2.5 * margin)
    known = "" if np.isnan(example.rms) else f"rms {example.rms:.3f}"
    flag = "" if example.flag == Flag.GOOD else example.flag
    text = "   ".join(filter(None, (example.id, known, flag)))
    axis.text(0.02, 0.95, text, transform=axis.transAxes, va="top", fontsize=7)


def _in_nanometres(wavelength: FloatArray) -> bool:
    return bool(wavelength[-1] - wavelength[0] > _NANOMETRES_FROM)
