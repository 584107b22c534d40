import numpy as np
import pytest
from astropy.table import Table
from hypothesis import given, settings
from hypothesis import strategies as st

from specjax.catalogues.sky import match, match_catalogue
from specjax.errors import DataError
from specjax.spectra import Spectra

ARCSEC = 1 / 3600


def test_the_nearest_within_the_radius_is_paired_and_others_are_reported():
    found = match([10, 10, 50, np.nan], [0.2 * ARCSEC, 0.1 * ARCSEC, 0, 0], [10, 50], [0, 2 * ARCSEC])
    assert found.left.tolist() == [1]
    assert found.right.tolist() == [0]
    np.testing.assert_allclose(found.separation, 0.1, rtol=1e-6)  # difference of nearly equal degrees
    assert found.duplicates.tolist() == [[0, 0]]


def test_the_sky_is_a_sphere():
    found = match(
        [359.99999, 0.0, 180.0], [0.0, 89.99999, 60.0], [0.00001, 180.0, 180.0005], [0.0, 89.99999, 60.0]
    )
    assert found.left.tolist() == [
        0,
        1,
        2,
    ]  # across zero, across the pole, and where a degree of RA is half a degree
    assert found.right.tolist() == [0, 1, 2]


def test_empty_and_invalid_positions():
    assert match([], [], [1.0], [2.0]).left.size == 0
    assert match([1.0], [np.nan], [1.0], [2.0]).duplicates.shape == (0, 2)
    with pytest.raises(DataError, match="differ in shape"):
        match([1.0, 2.0], [1.0], [1.0], [2.0])
    with pytest.raises(DataError, match="swapped"):
        match([1.0], [100.0], [1.0], [2.0])


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(0, 8), max_size=12), st.lists(st.integers(0, 8), max_size=12))
def test_pairs_are_one_to_one_and_complete(left, right):
    """Positions 0.5 arcsec apart on a line, with ties, chains and crowds."""
    ra = [np.array(side, dtype=float) * 0.5 * ARCSEC for side in (left, right)]
    found = match(ra[0], np.zeros(len(left)), ra[1], np.zeros(len(right)), radius=0.75)
    assert len(set(found.left.tolist())) == len(found.left)
    assert len(set(found.right.tolist())) == len(found.right)
    near = {i for i, a in enumerate(left) if any(abs(a - b) <= 1 for b in right)}
    assert near == set(found.left.tolist()) | set(found.duplicates[:, 0].tolist())


def test_unknown_positions_are_reported():
    spectra = Spectra.build(4000.0 + np.arange(5), np.ones((1, 5)), meta={"ra": [10.0], "dec": [np.nan]})
    with pytest.raises(DataError, match="the labels have no dec"):
        match_catalogue(spectra.with_meta(dec=[0.0]), Table({"ra": [10.0]}))
    with pytest.raises(DataError, match=r"the spectra have no known position \(ra, dec\)"):
        match_catalogue(spectra, Table({"ra": [10.0], "dec": [0.0]}))
