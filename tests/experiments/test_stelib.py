"""Known properties of the targets; the libraries must be in the cache (`specjax fetch stellar-libraries`)."""

import numpy as np
import pytest

from experiments.stelib import NAMES, label_scatter, make_targets, star_labels
from specjax.adapt.splits import draw_splits
from specjax.services import stellar_libraries

FOLDER = stellar_libraries.stellar_libraries_folder()  # at import, as the tests run with an empty cache
pytestmark = pytest.mark.skipif(
    not stellar_libraries.have_stellar_libraries(),
    reason=f"no stellar libraries in {FOLDER}: run `specjax fetch stellar-libraries` (121 MB)",
)


@pytest.fixture(scope="module")
def targets():
    return make_targets(FOLDER)


def test_126_stars_with_18_metal_poor_ones(targets):
    assert [target.name for target in targets] == list(NAMES)
    for target in targets:
        assert len(target.labelled) == len(target.truth) == 126
        assert (target.truth < -1).sum() == 18
        np.testing.assert_array_equal(target.truth, target.fe_h)
        assert target.labelled.mask.mean(axis=1).max() <= 0.2
        splits = draw_splits(126, seeds=2, train=60, validate=10)
        assert splits.test.shape == (2, 56)


def test_the_other_spectra_are_unlabelled(targets):
    for target in targets:
        assert not set(target.labelled.id) & set(target.unlabelled.id)
        left_out = {"no_coverage", "continuum_failed"} & set(target.refused.values())
        lost = sum(flag in left_out for flag in target.refused.values())
        assert len(target.labelled) + len(target.unlabelled) + lost == 255
        assert len(target.unlabelled) > 100
        # STELIB has gaps at 550 nm too, where XP flux is 1.
        assert (~target.unlabelled_xp.mask).any(axis=1).mean() > 0.85


def test_both_targets_have_the_same_stars(targets):
    first, second = targets
    np.testing.assert_array_equal(first.labelled.id, second.labelled.id)
    _, *rows = np.intersect1d(first.unlabelled.id, second.unlabelled.id, return_indices=True)
    assert len(rows[0]) > 100
    xp = [target.unlabelled_xp.flux[row] for target, row in zip(targets, rows, strict=True)]
    np.testing.assert_array_equal(*xp)
    valid = ~(first.labelled.mask | second.labelled.mask)
    sharp, blunt = (np.abs(np.diff(t.labelled.flux))[valid[:, 1:]].mean() for t in targets)
    assert sharp != blunt
    assert second.fwhm > 3 * first.fwhm


def test_labels_of_the_libraries_differ_by_less_than_a_tenth_of_a_dex(targets):
    # 0.086 computed by hand for the 79 common stars
    assert label_scatter(FOLDER, targets[0]) == pytest.approx(0.086, abs=0.003)


def test_all_labels_of_the_labelled_stars_are_known(targets):
    for target in targets:
        labels = star_labels(FOLDER, target.labelled.id)
        assert labels.shape == (126, 3)
        np.testing.assert_array_equal(labels[:, 2], target.truth)
        assert ((labels[:, 0] >= 3800) & (labels[:, 0] <= 7500)).all()
        assert np.isfinite(labels).all()
    some = target.labelled.id[[5, 2]]
    np.testing.assert_array_equal(star_labels(FOLDER, some), labels[[5, 2]])
