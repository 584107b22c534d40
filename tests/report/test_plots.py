import numpy as np
import pytest
from matplotlib.image import imread

from specjax.report import metrics, plots, results, style


@pytest.fixture
def run():
    rng = np.random.default_rng(0)
    truth = rng.uniform(-2.5, 0.4, size=40)
    stars = np.array([rng.permutation(40)[:20] for _ in range(3)])
    panels, rows = {}, []
    for name, kind, scatter in (
        ("gp-target", "baseline", 0.4),
        ("zero-shot-mlp2", "zero-shot", 0.3),
        ("lora4", "adapted", 0.1),
        ("lora2", "adapted", 0.2),
    ):
        predicted = truth[stars] + rng.normal(0, scatter, stars.shape)
        predicted[stars == 7] += 5.0
        panels[name] = plots.per_star(stars, truth[stars], predicted, lo=predicted - 0.1, hi=predicted + 0.2)
        scores = metrics.summarise(truth[stars], predicted, fe_h=truth[stars], stars=stars)
        rows += results.table_rows("stelib", name, scores, kind=kind)
    return panels, rows


def test_predictions_of_a_star_are_averaged_over_seeds():
    stars = np.array([[3, 1], [1, 8]])
    truth = np.array([[0.3, 0.1], [0.1, 0.8]])
    predicted = np.array([[0.5, 0.0], [0.4, 0.9]])
    below, above = np.array([[0.1, 0.2], [0.3, 0.4]]), np.array([[0.5, 0.6], [0.7, np.nan]])
    got = plots.per_star(stars, truth, predicted, lo=predicted - below, hi=predicted + above)
    np.testing.assert_array_equal(got.truth, [0.1, 0.3, 0.8])
    np.testing.assert_allclose(got.predicted, [0.2, 0.5, 0.9], rtol=1e-15)
    np.testing.assert_allclose(got.below, [0.25, 0.1, 0.4], rtol=1e-12)
    np.testing.assert_allclose(got.above, [0.65, 0.5, np.nan], rtol=1e-12)


@pytest.mark.parametrize("known", [True, False])
def test_bars_are_the_intervals_and_the_legend_says_so(tmp_path, monkeypatch, known):
    truth = np.array([[-1.0, 0.0, 0.3]])
    ends = {"lo": truth - 0.1, "hi": truth + 0.3} if known else {}
    stars = plots.per_star([[1, 2, 3]], truth, truth, **ends)
    figures = []
    monkeypatch.setattr(style, "save_figure", lambda figure, path, **_: figures.append(figure) or [path])
    plots.plot_predictions(tmp_path / "p.png", {"lora2": stars})
    (figure,) = figures
    assert [text.get_text() for one in figure.legends for text in one.texts] == [plots.BARS] * known
    (bars,) = figure.axes[0].collections
    drawn = [segment[:, 1] for segment in bars.get_segments()]
    expected = [(y - 0.1, y + 0.3) for y in truth[0]] if known else []
    np.testing.assert_allclose(drawn, expected, rtol=1e-12)


@pytest.mark.parametrize("panels", [1, 3, 4])
@pytest.mark.parametrize("with_rows", [False, True])
def test_predictions_are_plotted_for_any_number_of_panels(tmp_path, run, panels, with_rows):
    chosen = dict(list(run[0].items())[:panels])
    path = plots.plot_predictions(
        tmp_path / "p.png", chosen, rows=run[1] if with_rows else (), title="stelib"
    )
    image = imread(path)
    assert image.shape[1] == round((style.COLUMN if panels == 1 else style.PAGE) * style.DPI)
    assert image[..., :3].std() > 0.05  # not an empty page


@pytest.mark.parametrize("targets", [1, 2])
def test_sigma_is_plotted_for_any_number_of_targets(tmp_path, run, targets):
    rows = [{**row, "target": f"t{k}"} for k in range(targets) for row in run[1]]
    rows[0]["sigma"] = np.nan  # a failed configuration leaves its line empty
    path = plots.plot_sigma(tmp_path / "s.png", rows, label_scatter={"t0": 0.086}, title="[Fe/H]")
    assert imread(path)[..., :3].std() > 0.05


def test_sigma_is_plotted_for_a_pooled_subset_without_intervals(tmp_path, run):
    rows = [{**row, "sigma_lo": np.nan, "sigma_hi": np.nan} for row in run[1]]
    assert plots.plot_sigma(tmp_path / "s.png", rows, subset="fe_h<-1").is_file()


def test_curves_are_plotted_for_every_snr(tmp_path, run):
    _, rows = run
    curve = [
        {**row, "snr": snr, "n_train": stars}
        for row in rows
        if row["configuration"] == "lora4"
        for snr in (10.0, 100.0)
        for stars in (0, 20, 80)
    ]
    path = plots.plot_curves(tmp_path / "plan.png", curve, title="simulated")
    assert imread(path).std() > 0.01
