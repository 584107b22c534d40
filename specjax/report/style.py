"""The style of all figures: the widths of a journal's columns, legible type, and colours for any eye.

    with style.paper_figure(style.COLUMN, 2.5) as figure:
        axis = figure.subplots()
        ...
        style.save_figure(figure, folder / "plot.png")

Colours are from the palettes of Okabe and Ito and of Tol, which are distinguishable with any colour vision;
images should use the map `MAP`. What differs in colour should also differ in its marker or line. A
configuration or method has one colour in all plots (`colours`).
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from specjax.atomic import atomic_file
from specjax.overwrite import PDF_NOTES, PNG_NOTES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMN, PAGE = 3.4, 7.1
"""Widths in inches of one and of two columns of an astronomical journal."""

BLUE, VERMILION, GREEN, PINK, ORANGE, SKY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"
INK, GREY, LIGHT = "#222222", "#8C8C8C", "#E6E6E6"
INDIGO, WINE, OLIVE, BROWN = "#332288", "#882255", "#999933", "#7F4F24"
CURVES = (VERMILION, BLUE, GREEN, PINK, ORANGE, INK)
"""Colours of lines, in order."""

COLOURS: Mapping[str, str] = {
    "zero-shot-mlp1": BLUE,
    "zero-shot-mlp2": SKY,
    "lora2": VERMILION,
    "lora1+lora2": ORANGE,
    "lora4": GREEN,
    "lora1+lora3+lora4": PINK,
    "mlp-zero-shot": GREY,
    "mlp-lora": INDIGO,
    "kernel-ridge": OLIVE,
    "gp-target": INK,
    "gp-joint": BROWN,
    "mlp-affine": WINE,
}
"""Colours of configurations and baselines; the brighter ones are those of the foundation model."""

MARKERS = "osD^vPX<>"
"""Markers of lines, in order."""

MAP = "viridis"

SMALL, NORMAL = 7.0, 8.0
"""Sizes of type in points: of numbers, legends and notes, and of everything else."""

DPI = 300

_SETTINGS: Any = {
    "font.size": NORMAL,
    "axes.labelsize": NORMAL,
    "axes.titlesize": NORMAL,
    "figure.titlesize": NORMAL,
    "legend.fontsize": SMALL,
    "legend.title_fontsize": SMALL,
    "xtick.labelsize": SMALL,
    "ytick.labelsize": SMALL,
    "axes.linewidth": 0.6,
    "grid.linewidth": 0.5,
    "lines.linewidth": 1.0,
    "lines.markersize": 3.0,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.minor.width": 0.4,
    "ytick.minor.width": 0.4,
    "legend.frameon": False,
    "image.cmap": MAP,
    "mathtext.default": "regular",
    "pdf.fonttype": 42,  # TrueType, which journals ask for
}


def colour_of(name: str) -> str | None:
    """Return the colour in `COLOURS` of a name, with or without an ending; None for others.

    >>> colour_of("lora1+lora2-fused") == colour_of("lora1+lora2, told") == ORANGE
    True
    """
    return _found(name, COLOURS)


def colours(names: Iterable[str]) -> dict[str, str]:
    """Return the colours of what one plot shows, by name.

    Names without a colour of their own get those that are left, in order.
    """
    names = list(names)
    taken = {colour for name in names if (colour := colour_of(name))}
    free = [colour for colour in dict.fromkeys((*CURVES, *COLOURS.values())) if colour not in taken]
    found: dict[str, str] = {}
    count = 0
    for name in names:
        if (colour := _found(name, {**COLOURS, **found})) is None:
            colour, count = (free or CURVES)[count % len(free or CURVES)], count + 1
        found[name] = colour
    return found


def _found(name: str, known: Mapping[str, str]) -> str | None:
    """Return what is known of a name, or of it without an ending such as "-fused" or ", told"."""
    plain = name.partition(",")[0].removesuffix("-fused").removesuffix("-mean")
    return known.get(name, known.get(plain))


@contextmanager
def paper_figure(width: float, height: float) -> Iterator["Figure"]:
    """Yield an empty figure, in inches as printed, while matplotlib has the style; save it before the end.

    The figure does without pyplot's global state, and so needs neither the main thread nor a display.
    """
    import matplotlib
    from cycler import cycler
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context({**_SETTINGS, "axes.prop_cycle": cycler(color=CURVES)}):
        figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
        FigureCanvasAgg(figure)
        yield figure


def save_figure(figure: "Figure", path: str | Path, *, title: str = "", pdf: bool = True) -> list[Path]:
    """Write a figure as PNG and, for a paper, as PDF beside it, atomically.

    Args:
        figure: of `paper_figure`.
        path: of the PNG; .png may be left out.
        title: of the figure.
        pdf: write the PDF, too.

    Returns:
        The paths that were written. Without a date in them, the same figure is the same file.
    """
    if title:
        figure.suptitle(title, fontweight="bold")
    figure.draw_without_rendering()  # lays it out, once for both files
    figure.set_layout_engine("none")
    name = Path(path).name.removesuffix(".png")  # other suffixes may be parts of a name
    written = []
    forms = (("png", PNG_NOTES), ("pdf", {"CreationDate": None, **PDF_NOTES}))
    for form, notes in forms[: 1 + pdf]:
        written.append(Path(path).with_name(f"{name}.{form}"))
        with atomic_file(written[-1]) as temporary:
            figure.savefig(temporary, format=form, metadata=notes)
    return written
