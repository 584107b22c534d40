import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

from experiments import main_table
from experiments.source import Source
from specjax.adapt.configuration import PAPER
from specjax.errors import ConfigError
from specjax.foundation import load
from specjax.report.results import read_table
from tests import synthetic


def test_the_default_is_the_papers_table_on_all_targets():
    config = main_table.get_config()
    assert config.configurations == PAPER
    assert config.targets == ("miles", "miles-grism", "stelib")
    assert config.miles_train == 89
    assert config.baselines
    assert config.adapt.seeds >= 16
    assert (config.adapt.train, config.adapt.validate) == (60, 10)


@pytest.mark.parametrize("names", [("stelib", "stelib-grism"), ("stelib-grism", "stelib"), ("stelib-grism",)])
def test_writes_and_prints_the_table(monkeypatch, tmp_path, capsys, names):
    """The whole script, with a tiny model and synthetic targets in place of the libraries."""
    synthetic.foundation().save(tmp_path / "model")
    scatters = []

    def run_study(*args, label_scatter, **options):
        scatters.append(label_scatter)
        return real(*args, label_scatter=label_scatter, **options)

    def make_targets(libraries, names):
        return [synthetic.target(name=name) for name in names]

    real = main_table.run_study
    for name, stand_in in {
        "run_study": run_study,
        "make_targets": make_targets,
        "fetch_stellar_libraries": lambda: tmp_path,
        "miles_splits": lambda targets, config: {},
        "label_scatter": lambda libraries, target: 0.08 if target.name == "stelib" else None,
        "load": load,
        "use_compilation_cache": lambda: None,
    }.items():
        monkeypatch.setattr(main_table, name, stand_in)
    config = main_table.Config(
        out=tmp_path / "run",
        model=str(tmp_path / "model"),
        targets=names,
        configurations=("zero-shot-mlp2",),
        baselines=False,
        adapt=dataclasses.replace(synthetic.ADAPT, seeds=2),
    )
    with synthetic.quick_compilation():
        rows = main_table.main(config)
    assert list(dict.fromkeys(row["target"] for row in rows)) == list(names)
    assert len(read_table(tmp_path / "run")) == len(rows)
    assert "zero-shot-mlp2" in capsys.readouterr().out
    assert scatters == [{"stelib": 0.08} if "stelib" in names else {}]


def test_baselines_follow_the_splits(monkeypatch, tmp_path):
    """With a synthetic corpus in place of the stellar libraries."""
    pytest.importorskip("sklearn")
    from specjax.adapt.splits import draw_splits
    from specjax.preprocess import PrincipalFill
    from specjax.pretrain.batches import make_data
    from specjax.pretrain.config import PretrainConfig, StageConfig

    pairs = synthetic.corpus(60)
    rng = np.random.default_rng(0)
    labels = np.insert(pairs.labels, 1, rng.uniform(1, 5, 60), axis=1)
    fill = PrincipalFill.fit(pairs.flux, np.zeros(pairs.flux.shape, bool), 5)
    source = Source(pairs.flux, labels, make_data(pairs, PretrainConfig()), fill, lambda fwhm: pairs.flux)
    monkeypatch.setattr("experiments.spectrum_mlp.trained", lambda source, *_: None)
    monkeypatch.setattr("experiments.spectrum_mlp.zero_shot", lambda network, flux: flux.mean(axis=1))
    monkeypatch.setattr(
        "experiments.spectrum_mlp.adapted", lambda network, flux, *_: np.tile(flux.mean(axis=1), (2, 1))
    )
    monkeypatch.setattr(main_table, "core_count", lambda: 1)
    monkeypatch.setattr("experiments.cannon.RIDGE", (1.0,))
    monkeypatch.setattr("experiments.payne.STAGE", StageConfig(steps=100, batch=32, chunk=100))
    target, splits = synthetic.target(), draw_splits(40, seeds=2, train=20, validate=4)
    others = rng.uniform([4000, 1], [7000, 5], (40, 2))  # Teff and log g
    target_labels = np.column_stack([others, target.truth])
    monkeypatch.setattr(main_table.stelib, "star_labels", lambda folder, ids: target_labels)
    with synthetic.quick_compilation():
        made = main_table.Baselines(tmp_path, source, synthetic.ADAPT)(target, splits)
    target_only, payne = ["kernel-ridge", "gp-target"], ["payne", "payne-affine"]
    networks = ["mlp-zero-shot", "mlp-lora"]
    assert list(made) == [*networks, *target_only, "gp-joint", "mlp-affine", "cannon", *payne]
    for name, values in made.items():
        assert values.shape == (2, 40)
        for row, test in zip(values, splits.test, strict=True):
            assert np.isfinite(row[test]).all(), name


def test_the_targets_are_checked(tmp_path):
    with pytest.raises(ConfigError, match="no target 'milse': the targets are miles, miles-grism, stelib"):
        main_table.make_targets(tmp_path, ("stelib", "milse"))


def test_a_model_that_knows_the_stars_is_refused(tmp_path):
    config = main_table.Config(out=tmp_path / "run", model="mini", targets=("stelib", "miles"))
    with pytest.raises(ConfigError, match="mini was trained on MILES"):
        main_table.main(config)


def test_miles_has_the_papers_numbers_of_stars():
    targets = [SimpleNamespace(name=name, labelled=range(120)) for name in ("miles", "stelib")]
    config = main_table.Config(adapt=dataclasses.replace(synthetic.ADAPT, seeds=2))
    splits = main_table.miles_splits(targets, config)
    assert list(splits) == ["miles"]
    assert [part.shape for part in (splits["miles"].train, splits["miles"].validate)] == [(2, 89), (2, 9)]
    assert splits["miles"].test.shape == (2, 120 - 98)
