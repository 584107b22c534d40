"""Figures are as wide as a column or a page, legible there, and written as PNG and PDF."""

import numpy as np
import pytest
from matplotlib.image import imread
from matplotlib.lines import Line2D
from matplotlib.text import Text

from specjax.pretrain import monitor
from specjax.report import metrics, plots, results, style
from specjax.report.calibration_plot import SNR, plot_calibration


@pytest.fixture
def drawn(monkeypatch):
    """Figures that are saved, their files, and the box around all that they show, in inches."""
    saved, save = [], style.save_figure

    def keep(figure, path, **options):
        written = save(figure, path, **options)
        saved.append((figure, written, figure.get_tightbbox()))
        return written

    monkeypatch.setattr(style, "save_figure", keep)
    return saved


def rows_and_panels(names=("zero-shot-mlp1", "lora1+lora3+lora4", "kernel-ridge"), targets=1):
    rng = np.random.default_rng(0)
    truth = rng.uniform(-2.5, 0.4, size=(2, 30))
    stars = np.tile(np.arange(30), (2, 1))
    kinds = dict(zip(names, ("zero-shot", "adapted", "baseline"), strict=True))
    rows, panels = [], {}
    for name, kind in kinds.items():
        predicted = truth + rng.normal(0, 0.2, truth.shape)
        panels[name] = plots.per_star(stars, truth, predicted, lo=predicted - 0.1, hi=predicted + 0.1)
        scores = metrics.summarise(truth, predicted, fe_h=truth, stars=stars)
        for number in range(targets):
            rows += results.table_rows(f"target-{number}", name, scores, kind=kind)
    return rows, panels


def sigma(path, targets):
    rows, _ = rows_and_panels(targets=targets)
    plots.plot_sigma(path, rows, label_scatter={"target-0": 0.1})


def predictions(path, count):
    rows, panels = rows_and_panels()
    chosen = dict(list(panels.items())[:count])
    plots.plot_predictions(path, chosen, rows=rows, title="a survey")


def curves(path, levels):
    rows, _ = rows_and_panels()
    own = next(row for row in rows if row["subset"] == "all")
    several = [{**own, "snr": 10.0**k, "n_train": n} for k in range(levels) for n in (0, 20, 160)]
    plots.plot_curves(path, several, title="simulated survey: lora4")


def pretraining(path, stages):
    lines = [
        {"stage": f"stage {k}", "step": step, name: 1.0 / step}
        for k in range(stages)
        for step in (1, 10, 100)
        for name in ("loss", "held-out loss")
    ]
    monitor.draw_curves(lines, path)


def calibration(path, count):
    ends = {"coverage68": 0.7, "coverage95": 0.95}
    scores = {f"{name}{end}": value + shift for name, value in ends.items()
              for end, shift in (("", 0), ("_lo", -0.1), ("_hi", 0.04))}  # fmt: skip
    rows = [
        {"configuration": name, "subset": subset, "n_stars": 100, "width68": 0.3, **scores}
        for name in ("zero-shot-mlp1", "lora1+lora3+lora4", "lora4")[:count]
        for subset in ("all", "fe_h<-1", "predicted [Fe/H]>=-1", "35.2<=snr<101")
    ]
    plot_calibration(path, rows, title="a survey")


@pytest.mark.parametrize(
    ("draw", "number", "width", "pdf"),
    [
        (sigma, 1, style.COLUMN, True),
        (sigma, 3, style.PAGE, True),
        (predictions, 1, style.COLUMN, True),
        (predictions, 2, style.PAGE, True),
        (predictions, 3, style.PAGE, True),
        (curves, 3, style.COLUMN, True),
        (calibration, 1, style.PAGE, True),
        (calibration, 3, style.PAGE, True),
        (pretraining, 2, style.PAGE, False),
    ],
)
def test_figures_are_legible_at_the_width_of_a_journal(tmp_path, drawn, draw, number, width, pdf):
    draw(tmp_path / "figure.png", number)
    ((figure, written, box),) = drawn
    assert figure.get_size_inches()[0] == width
    assert figure.get_size_inches()[1] <= 9.0  # the height of a page
    assert [path.name for path in written] == ["figure.png", "figure.pdf"][: 1 + pdf]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in written)
    words = [text for text in figure.findobj(Text) if text.get_text().strip() and text.get_visible()]
    assert words
    assert min(text.get_fontsize() for text in words) >= style.SMALL
    assert min(box.x0, box.y0) > -0.01  # nothing is cut off, but for the rounding of a pixel
    assert box.x1 < width + 0.01
    assert box.y1 < figure.get_size_inches()[1] + 0.01
    image = imread(written[0])
    assert image.shape[1] == round(width * style.DPI)
    assert image[..., :3].std() > 0.05  # not an empty page


def test_the_same_figure_is_the_same_file(tmp_path):
    for name in ("a", "b"):
        sigma(tmp_path / f"{name}.png", 1)
    for form in ("png", "pdf"):
        assert (tmp_path / f"a.{form}").read_bytes() == (tmp_path / f"b.{form}").read_bytes()


def test_only_the_suffix_of_a_picture_is_replaced(tmp_path):
    with style.paper_figure(1, 1) as figure:
        written = style.save_figure(figure, tmp_path / "predictions_v1.2")
    assert [path.name for path in written] == ["predictions_v1.2.png", "predictions_v1.2.pdf"]


def test_colours_differ_in_lightness_or_are_of_the_palette():
    okabe_ito = {"#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442", "#000000"}
    greys = {style.INK, style.GREY, style.LIGHT}
    assert set(style.CURVES) <= okabe_ito | greys
    assert len(set(style.CURVES)) == len(style.CURVES)


def test_every_configuration_has_a_colour_of_its_own_in_all_plots():
    assert len(set(style.COLOURS.values())) == len(style.COLOURS)
    names = ("lora1", "lora1-fused", "lora2", "lora2-mean", "lora1+lora3", "untold", "gp-target")
    found = style.colours(names)
    assert list(found) == list(names)
    assert found["lora2"] == found["lora2-mean"] == style.COLOURS["lora2"]
    assert found["gp-target"] == style.COLOURS["gp-target"]
    assert found["lora1"] == found["lora1-fused"]
    assert len(set(found.values())) == len(names) - 2  # an adapter has the colour of what it was fused from
    assert len(set(style.colours(("miles", "miles-12A", "miles-24A")).values())) == 3


def test_plots_use_the_colours_of_the_configurations(tmp_path, drawn):
    names = ("zero-shot-mlp1", "lora1+lora3+lora4", "lora4")
    sigma(tmp_path / "sigma.png", 1)
    predictions(tmp_path / "predictions.png", 2)
    calibration(tmp_path / "calibration.png", 3)
    for (figure, *_), shown in zip(drawn, (names[:2], names[:2], names), strict=True):
        for name in shown:
            assert any(line.get_color() == style.COLOURS[name] for line in figure.findobj(Line2D))


def test_the_calibration_plot_says_what_its_signal_to_noise_is(tmp_path, drawn):
    calibration(tmp_path / "c.png", 1)
    words = [text.get_text() for text in drawn[0][0].findobj(Text)]
    assert SNR in words
    assert "35.2<=S/N<101 (100 stars)" in words


def test_the_settings_of_matplotlib_are_left_alone():
    import matplotlib

    before = dict(matplotlib.rcParams)
    with style.paper_figure(1, 1):
        pass
    assert dict(matplotlib.rcParams) == before
