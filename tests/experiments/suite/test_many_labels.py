import dataclasses

import numpy as np
import pytest

from experiments.suite import many_labels
from experiments.suite.many_labels import ALONE, OF_FE_H, TOGETHER
from specjax.errors import ConfigError
from tests import synthetic
from tests.experiments.suite import small

pytestmark = pytest.mark.usefixtures("quick_compilation")


def group():
    """Both labels of the synthetic survey, on the same stars."""
    values = synthetic.labels(40, seed=5)
    return {
        label: small.case(label=label, truth=values[:, column])
        for column, label in enumerate(("teff", "fe_h"))
    }


@pytest.mark.slow
def test_the_experiment(monkeypatch, tmp_path):
    small.install(monkeypatch)
    monkeypatch.setattr(many_labels, "AdaptConfig", lambda: synthetic.ADAPT)
    monkeypatch.setattr(many_labels, "load_groups", lambda config: [group()])
    monkeypatch.setattr(
        many_labels,
        "target_baselines",
        lambda flux, truth, train, jobs: {"mean": np.tile(truth.mean(), (2, 40))},
    )
    results = many_labels.run(many_labels.get_config(), tmp_path, small.silent)
    results.write(tmp_path)
    by = {(row["label"], row["name"]): row for row in results.rows}
    assert {name for label, name in by if label == "teff"} == {"zero-shot", ALONE, TOGETHER, OF_FE_H, "mean"}
    assert ("fe_h", OF_FE_H) not in by
    assert by["teff", ALONE]["unit"] == "K"
    assert by["teff", ALONE]["sigma"] > 30 * by["fe_h", ALONE]["sigma"]  # K and dex
    for label in ("teff", "fe_h"):
        assert by[label, ALONE]["r2"] > by[label, "zero-shot"]["r2"]
        assert by[label, TOGETHER]["r2"] > by[label, "zero-shot"]["r2"]
    # Factors that were trained on one label know nothing of the other.
    assert by["teff", OF_FE_H]["sigma"] > by["teff", ALONE]["sigma"]
    assert len(results.sentences) == 2


def test_the_backbone_is_not_adapted_here(tmp_path):
    config = dataclasses.replace(many_labels.get_config(), configuration="lora1")
    with pytest.raises(ConfigError, match="only heads are adapted here: lora2 or lora4, not lora1"):
        many_labels.run(config, tmp_path, small.silent)
