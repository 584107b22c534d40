"""Comparisons on pairs, with models that answer as told."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

from specjax.report.agreement import compare_labels, compare_pairs, failed, percentiles
from specjax.spectra import Spectra

N, SHARED = 40, 6


def spectra(pixels, seed):
    rng = np.random.default_rng(seed)
    flux = (1 + 0.1 * rng.normal(size=(N, pixels))).astype(np.float32)
    return Spectra.build(wavelength=np.linspace(4000, 5000, pixels), flux=flux, medium="vacuum")


LAMOST, XP = (
    dataclasses.replace(spectra(30, 0), survey="lamost"),
    dataclasses.replace(spectra(20, 1), survey="gaia_xp"),
)


def model(error, aligned=True):
    """A model whose spectra are off by `error`, and whose vectors of both surveys are the same if aligned."""
    sides = {"lamost": LAMOST, "gaia_xp": XP}
    z = np.random.default_rng(2).normal(size=(N, SHARED + 2)).astype(np.float32)
    vectors = {"lamost": z, "gaia_xp": z if aligned else -z}
    return SimpleNamespace(
        reconstruct=lambda spectra: spectra.flux + np.float32(error),
        translate=lambda spectra, target: sides[target].flux + np.float32(error),
        embed=lambda spectra: vectors[spectra.survey],
        config=SimpleNamespace(projection=SimpleNamespace(shared_dim=SHARED)),
    )


def test_a_perfect_model_agrees_and_a_useless_one_does_not():
    rows = compare_pairs(model(0.01), LAMOST, XP)
    assert [row.value for row in rows[:4]] == pytest.approx([0.01] * 4, rel=1e-3)  # float32
    assert rows[4].value == 1.0
    assert rows[4].reference == 1 / N
    assert failed(rows) == []
    useless = compare_pairs(model(1.0, aligned=False), LAMOST, XP)
    assert failed(useless) == useless
    assert useless[4].value == 0.0


def test_the_reference_is_the_mean_spectrum():
    rows = compare_pairs(model(0.01), LAMOST, XP)
    expected = np.abs(XP.flux - XP.flux.mean(axis=0)).mean()
    assert rows[1].reference == pytest.approx(expected, rel=1e-5)  # sums in another order


def test_labels_of_the_same_stars_are_compared():
    rng = np.random.default_rng(3)
    truth = rng.normal(size=500)
    sigma, offset = compare_labels("fe_h", truth, truth + 0.2 + 0.1 * rng.normal(size=500))
    # A scatter of 500 normal deviates has a standard error of 3%, a median one of 0.0056; four of them.
    assert sigma.value == pytest.approx(0.1, rel=0.13)
    assert offset.value == pytest.approx(0.2, abs=0.023)
    assert sigma.low < sigma.value < sigma.high < sigma.reference
    assert failed([sigma, offset]) == []
    unrelated = compare_labels("fe_h", truth, rng.normal(size=500))
    assert failed(unrelated) == unrelated[:1]


def test_percentiles_of_labels():
    assert percentiles({"a": np.arange(101.0)}) == {"a": (16.0, 50.0, 84.0)}
