import numpy as np
import pytest

from specjax.errors import DataError
from specjax.spectra import Spectra
from specjax.surveys.io.many import join, read_each


def piece(start, pixels, name, step=1e-4):
    grid = 10 ** (3.6 + step * np.arange(start, start + pixels))
    flux = np.arange(start, start + pixels, dtype=float)[None] + 1
    return Spectra.build(grid, flux, np.ones_like(flux), id=[name], meta={"n": [start]})


def test_pieces_of_one_log_grid_are_joined_on_it():
    joined = join([piece(5, 20, "a"), piece(0, 10, "b"), piece(8, 30, "c")])
    assert joined.wavelength.shape == (38,)
    for row, (start, pixels) in enumerate([(5, 20), (0, 10), (8, 30)]):
        there = np.zeros(38, dtype=bool)
        there[start : start + pixels] = True
        np.testing.assert_array_equal(joined.mask[row], ~there)
        np.testing.assert_array_equal(joined.flux[row], np.where(there, np.arange(38) + 1, 0))
    assert joined.meta["n"].tolist() == [5, 0, 8]


@pytest.mark.parametrize("other", [piece(0.4, 20, "b"), piece(0, 20, "b", 2e-4), piece(0, 21, "b", 1.02e-4)])
def test_other_grids_are_not_joined(other):
    joined = join([piece(0, 20, "a"), other])
    assert joined.wavelength.ndim == 2
    np.testing.assert_array_equal(joined.wavelength[1, :20], other.wavelength[:20])


def test_each_refused_file_is_reported_with_a_reason(caplog):
    def read_one(path):
        if path == "bad":
            raise DataError("bad is bad")
        return path.upper()

    assert read_each(["a", "bad", "b"], read_one, "a letter") == (["A", "B"], {"bad": "bad is bad"})
    assert [record.getMessage() for record in caplog.records] == ["left out: bad is bad"]
    with pytest.raises(DataError, match=r"^bad is bad$"):
        read_each(["bad"], read_one, "a letter")
    assert read_each([], read_one, "a letter") == ([], {})
