import numpy as np
import pytest

from specjax.errors import ModelError
from specjax.flags import Flag
from specjax.foundation.ood import QUANTILE, OutOfDomain

RNG = np.random.default_rng(0)
MIXING = RNG.normal(size=(6, 6))
FEATURES = RNG.normal(size=(20_000, 6)) @ MIXING + 3.0


def test_the_quantile_of_the_training_spectra_is_inside():
    inside = (OutOfDomain.fit(FEATURES).distance(FEATURES) <= 1).mean()
    assert abs(inside - QUANTILE) <= 1 / len(FEATURES)  # a quantile is exact to one spectrum


def test_new_spectra_of_the_same_kind_are_inside_and_others_are_not():
    ood = OutOfDomain.fit(FEATURES)
    same = RNG.normal(size=(2000, 6)) @ MIXING + 3.0
    # Binomial: 2 expected outside, standard deviation 1.4.
    assert (ood.distance(same) > 1).sum() <= 10
    assert (ood.distance(same + 8 * MIXING[0]) > 1).all()


def test_the_distance_does_not_depend_on_the_features_units():
    """Invariant under rotation, a common scale and shift; the ridge goes with the scale."""
    rotation, _ = np.linalg.qr(RNG.normal(size=(6, 6)))
    other = 50 * FEATURES @ rotation - 7.0
    a, b = OutOfDomain.fit(FEATURES), OutOfDomain.fit(other)
    np.testing.assert_allclose(a.distance(FEATURES), b.distance(other), rtol=1e-8)  # float64


def test_directions_without_variance_do_not_divide_by_zero():
    flat = FEATURES.copy()
    flat[:, 2] = 1.0
    ood = OutOfDomain.fit(flat)
    assert np.isfinite(ood.distance(flat)).all()
    off = flat[:5].copy()
    off[:, 2] += 10 * FEATURES.std()
    assert (ood.distance(off) > 1).all()  # never seen to vary, and now it does


def test_a_kind_of_stars_outside_is_told_by_its_name():
    """Three standard deviations aside, where the Mahalanobis distance alone does not see it."""
    aside = 3 * np.linalg.svd(MIXING)[2][0] * np.linalg.svd(MIXING)[1][0]
    kind = RNG.normal(size=(300, 6)) @ MIXING + 3.0 + aside
    more = RNG.normal(size=(2000, 6)) @ MIXING + 3.0 + aside
    ood = OutOfDomain.fit(FEATURES, {"aside": kind})
    inside = ood.flags(FEATURES)
    # By construction all but 0.5% (and of the rest all but 0.1%) of the training spectra are inside.
    assert (inside == "good").mean() > 0.993
    # Fisher's threshold lies 2.58 standard deviations out: Phi(3 - 2.58) = 0.66 of the kind is beyond it.
    assert abs((ood.flags(more) == "aside").mean() - 0.66) < 0.1  # 300 stars tell where the kind is
    assert (OutOfDomain.fit(FEATURES).flags(more) == "good").mean() > 0.7


def test_what_is_unlike_everything_is_flagged_so():
    far = FEATURES[:50] + 50 * MIXING[0]
    assert set(OutOfDomain.fit(FEATURES).flags(far)) == {Flag.UNLIKE_TRAINING}


def test_arrays_hold_it():
    ood = OutOfDomain.fit(FEATURES, {"aside": FEATURES[:500] + 5})
    again = OutOfDomain.from_arrays(ood.to_arrays())
    np.testing.assert_allclose(  # float32
        again.distance(FEATURES[:50]), ood.distance(FEATURES[:50]), rtol=1e-5
    )
    np.testing.assert_array_equal(again.flags(FEATURES[:50] + 5), ood.flags(FEATURES[:50] + 5))
    with pytest.raises(ModelError, match="limit"):
        OutOfDomain.from_arrays({"mean": ood.mean, "whitening": ood.whitening})
