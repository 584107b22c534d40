"""Figures for papers: sizes of a journal's columns, legible type, and a PDF beside every PNG."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from specjax.atomic import atomic_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMN, PAGE = 3.46, 7.1
"""Widths in inches of one and of two columns of an astronomical journal."""

DPI = 300

_STYLE: Any = {
    "font.size": 8.0,
    "axes.labelsize": 8.0,
    "axes.titlesize": 8.0,
    "legend.fontsize": 7.0,
    "xtick.labelsize": 7.0,
    "ytick.labelsize": 7.0,
    "axes.linewidth": 0.6,
    "lines.linewidth": 0.8,
    "xtick.direction": "in",
    "ytick.direction": "in",
    "xtick.top": True,
    "ytick.right": True,
    "xtick.minor.visible": True,
    "ytick.minor.visible": True,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.minor.width": 0.4,
    "ytick.minor.width": 0.4,
    "pdf.fonttype": 42,  # TrueType, which journals ask for
}


@contextmanager
def paper_figure(width: float, height: float) -> Iterator["Figure"]:
    """Yield an empty figure, width and height in inches, while matplotlib has the style of these figures.

    The figure does without pyplot, and so needs neither the main thread nor a display.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
        FigureCanvasAgg(figure)
        yield figure


def save_figure(figure: "Figure", path: str | Path) -> list[Path]:
    """Write PATH with the suffixes .png and .pdf, atomically, and return both paths."""
    figure.draw_without_rendering()  # lays it out, once for both files
    figure.set_layout_engine("none")
    paths = [Path(path).with_suffix(suffix) for suffix in (".png", ".pdf")]
    for each in paths:
        # Without the date the same figure is the same file.
        notes = {"CreationDate": None} if each.suffix == ".pdf" else None
        with atomic_file(each) as temporary:
            figure.savefig(temporary, format=each.suffix[1:], metadata=notes)
    return paths
