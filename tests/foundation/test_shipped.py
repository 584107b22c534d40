"""The models that ship with the package."""

import json

import pytest

from specjax.config import get_preset
from specjax.foundation import load
from specjax.foundation.model import SHIPPED
from specjax.preprocess import to_lamost
from specjax.report.metrics import robust_sigma
from specjax.simulate import Instrument
from specjax.simulate.emulator import SHIPPED as EMULATOR
from specjax.simulate.survey import simulate_spectra


@pytest.mark.parametrize("name", SHIPPED)
def test_each_is_small_and_has_the_sizes_of_its_preset(name):
    assert sum(file.stat().st_size for file in (EMULATOR.parent / name).iterdir()) < 12e6
    assert load(name).config == get_preset(name)


def test_the_model_from_physics_was_trained_without_low_resolutions():
    config = json.loads((EMULATOR.parent / "mini-physics" / "config.json").read_text())
    assert config["training"]["preset"] == "mini-physics"
    assert config["training"]["augment"]["degraded_probability"] == 0


def test_the_model_from_physics_knows_simulated_stars():
    """Whose continuum is fitted to a shorter range than in training, hence the offsets."""
    stars = simulate_spectra(Instrument.get("lamost").with_snr(100, 100), 96, seed=5)
    labels = load("mini-physics").predict(to_lamost(stars, velocity_column="redshift"), "mlp1")
    errors = {name: labels[name] - stars.meta[name] for name in labels}
    # These stars spread by 720 K, 1 dex, 0.56 dex and 0.15 dex; the scatter was 44 K, 0.08, 0.05 and 0.02.
    scatter = {name: robust_sigma(error) for name, error in errors.items()}
    assert scatter["teff"] < 90
    assert scatter["logg"] < 0.16
    assert scatter["fe_h"] < 0.1
    assert scatter["alpha_fe"] < 0.05
