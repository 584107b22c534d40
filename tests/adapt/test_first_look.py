"""What an adaptation says of labels before it trains on them."""

from pathlib import Path

import numpy as np
import pytest

from specjax.adapt.first_look import about_labels, compare_labels, ignored_errors
from specjax.adapt.target import make_target
from specjax.spectra import Spectra
from specjax.wavelength import LAMOST_WAVELENGTH

N = 60
FE_H = np.random.default_rng(0).uniform(-2.5, 0.3, N)
PREDICTED = FE_H + np.random.default_rng(1).normal(0, 0.15, N)
IDS = np.array([f"s{number}" for number in range(N)])


def a_target(truth, label="fe_h", error=None):
    meta = {"flag": np.full(N, "good")}
    spectra = Spectra.build(LAMOST_WAVELENGTH, np.ones((N, 1462)), id=IDS, meta=meta)
    return make_target("t", spectra, truth, label=label, error=error)


def test_good_labels_are_only_described():
    line, doubt = compare_labels(a_target(FE_H), "zero-shot-mlp2", PREDICTED)
    assert line.startswith("t: zero-shot-mlp2 minus labels: ")
    assert "(60 stars)" in line
    assert doubt == ""


@pytest.mark.parametrize(
    ("truth", "said"),
    [
        (10**FE_H, "differ by -"),  # a linear abundance
        (FE_H + 2.0, "differ by -2.0"),  # or spectra of a much lower resolution
        (np.random.default_rng(2).permutation(FE_H), "do not follow"),  # ids of other stars
    ],
)
def test_labels_that_the_predictions_contradict_are_doubted_in_one_line(truth, said):
    _, doubt = compare_labels(a_target(truth), "zero-shot-mlp2", PREDICTED)
    assert said in doubt
    assert "check" in doubt
    assert "\n" not in doubt


def test_an_offset_within_the_scatter_is_no_doubt():
    """Poor predictions alone say nothing of the labels."""
    noisy = FE_H + np.random.default_rng(3).normal(0.1, 1.2, N)
    assert compare_labels(a_target(FE_H), "zero-shot-mlp2", noisy)[1] == ""


def test_temperatures_are_whole_kelvin():
    teff = 4000 + 1000 * (FE_H + 2.5)
    line, doubt = compare_labels(a_target(teff, "teff"), "zero-shot-mlp2", teff - 3000.4)
    assert "-3000 K in the median" in line
    assert "differ by -3000 K" in doubt


def test_errors_that_are_not_positive_are_counted_with_the_first_star():
    error = np.full(N, 0.1)
    error[[3, 7]] = [-0.2, 0.0]
    said = ignored_errors("fe_h", IDS, FE_H, error, Path("t.ecsv"))
    assert (
        said == "t.ecsv: fe_h_err of 2 stars is zero or negative, first of s3 (-0.2): it is taken as unknown"
    )
    unlabelled = np.where(np.arange(N) < 10, np.nan, FE_H)
    assert ignored_errors("fe_h", IDS, unlabelled, error, Path("t.ecsv")) == ""
    assert ignored_errors("fe_h", IDS, FE_H, None, Path("t.ecsv")) == ""
    assert a_target(FE_H, error=error).truth_error[[3, 7]].tolist() == [0, 0]


@pytest.mark.parametrize("known", [0, 20, N])
def test_an_adaptation_says_what_its_intervals_are_for(known):
    error = np.where(np.arange(N) < known, 0.1, np.nan)
    target = a_target(FE_H, error=error)
    (line,) = about_labels([target], {"fe_h": FE_H, "fe_h_err": error}, IDS, Path("t.ecsv"))
    assert ("true [Fe/H]" in line) == (known > 0)
    assert (f"for {known} of 60 stars" if known else "no fe_h_err is known") in line
