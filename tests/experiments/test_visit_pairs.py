import numpy as np
import pytest
from astropy.table import Table

from experiments.visit_pairs import find_stars, nearest_is_partner
from specjax.errors import DataError
from specjax.spectra import Spectra


def visits(files, star):
    return Table({"file": files, "star": star})


def test_partners_are_found_despite_a_common_offset_and_varying_lengths():
    rng = np.random.default_rng(0)
    star = np.repeat(np.arange(10), 2)
    own = rng.normal(size=(10, 30))[star]
    noisy = 5.0 + rng.uniform(0.5, 2.0, (20, 1)) * (own + 0.01 * rng.normal(size=own.shape))
    assert nearest_is_partner(own + 3.0 + 1e-3 * rng.normal(size=own.shape), star).all()
    assert nearest_is_partner(noisy, star).mean() > 0.8  # lengths shift the mean that is subtracted
    assert nearest_is_partner(rng.normal(size=(200, 30)), np.repeat(np.arange(100), 2)).mean() < 0.1


def test_stars_are_matched_by_file_name():
    spectra = Spectra.build(np.arange(4000.0, 4005.0), np.ones((3, 5)), id=["a", "b", "c"])
    table = visits(["c.fits.gz", "a.fits.gz", "x.fits"], [7.0, 7.0, 2.0])
    assert find_stars(spectra, table).tolist() == [0, -1, 0]
    with pytest.raises(DataError, match="lists none"):
        find_stars(spectra, visits(["x.fits"], [1]))
    with pytest.raises(DataError, match="no column star"):
        find_stars(spectra, Table({"file": ["a"]}))
