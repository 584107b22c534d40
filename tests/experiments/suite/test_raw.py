import dataclasses

import numpy as np
import pytest
from astropy.table import Table

from experiments.suite import raw, shifts
from experiments.suite.pair_targets import load_pairs
from experiments.suite.shifts import FLAWS, spoilt_target
from specjax.errors import DataError

GRID = np.arange(3600.0, 5800.0, 1.0)


@pytest.fixture
def survey(tmp_path):
    """A folder with twelve spectra with narrow lines, and labels of ten of them."""
    rng = np.random.default_rng(0)
    lines = np.exp(-0.5 * ((GRID - rng.uniform(3700, 5700, 60)[:, None]) / 2) ** 2)
    flux = (
        1
        - rng.uniform(0.1, 0.5, (12, 60)) @ lines.clip(0, 1) * 0.3
        + 0.005 * rng.normal(size=(12, GRID.size))
    )
    ids = [f"s{k}" for k in range(12)]
    np.savez(tmp_path / "spectra.npz", wavelength=GRID, flux=flux, id=ids, redshift=np.zeros(12))
    Table({"id": ids[:10], "fe_h": np.linspace(-2, 0, 10)}).write(tmp_path / "labels.csv")
    return dataclasses.replace(shifts.get_config(), target=tmp_path, fwhm=4.0)


def test_a_users_survey_before_preprocessing(survey):
    (found,) = raw.load_raw(survey)
    assert found.fwhm == 4.0
    assert len(found.spectra) == 12
    np.testing.assert_array_equal(np.isfinite(found.truth), np.arange(12) < 10)
    np.testing.assert_array_equal(found.fe_h, found.truth)


@pytest.mark.parametrize("flaw", ["none", "scattered light 40%", "S/N 20", "mixed, mild"])
def test_a_spoilt_target_has_the_same_stars(survey, flaw):
    (found,) = raw.load_raw(survey)
    plain, spoilt = (spoilt_target(found, name) for name in ("none", flaw))
    assert set(spoilt.labelled.id) <= {f"s{k}" for k in range(10)}
    np.testing.assert_array_equal(spoilt.labelled.id, plain.labelled.id)
    np.testing.assert_array_equal(spoilt.truth, plain.truth)
    changed = not np.array_equal(spoilt.labelled.flux, plain.labelled.flux)
    assert changed == (flaw != "none")
    assert spoilt.labelled.has_ivar == (FLAWS[flaw].snr is not None)


def test_pairs_need_gaia_xp_spectra(survey):
    with pytest.raises(DataError, match="has no Gaia XP spectra"):
        list(load_pairs(survey))
