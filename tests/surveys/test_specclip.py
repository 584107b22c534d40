import h5py
import numpy as np
import pytest

from specjax.errors import DataError
from specjax.preprocess import to_gaia_xp, to_lamost
from specjax.surveys import read, read_xp
from specjax.wavelength import GAIA_XP_WAVELENGTH, LAMOST_WAVELENGTH

COUNT = {"train": 3, "test": 2}


def flux(n, pixels, seed=0):
    return (1 + 0.1 * np.random.default_rng(seed).normal(size=(n, pixels, 1))).astype(np.float32)


@pytest.fixture
def pairs(tmp_path):
    path = tmp_path / "gaia_lamost.h5"
    with h5py.File(path, "w") as file:
        for split, n in COUNT.items():
            file[f"{split}/lamost_spectra"] = flux(n, 1462)
            file[f"{split}/gaia_spectra"] = flux(n, 343)
        file["test/source_ids"] = np.array([4295806720, 38655544960])
    return path


def test_pairs_are_read_row_for_row(pairs):
    spectra, partner = read(pairs), read_xp(pairs)
    np.testing.assert_array_equal(spectra.wavelength, LAMOST_WAVELENGTH)
    np.testing.assert_array_equal(partner.wavelength, GAIA_XP_WAVELENGTH)
    np.testing.assert_array_equal(spectra.flux[:3], flux(3, 1462)[..., 0])
    np.testing.assert_array_equal(partner.flux[3:], flux(2, 343)[..., 0])
    assert spectra.id.tolist() == ["train-0", "train-1", "train-2", "4295806720", "38655544960"]
    assert partner.id.tolist() == spectra.id.tolist()
    assert spectra.meta["split"].tolist() == ["train"] * 3 + ["test"] * 2
    assert not spectra.has_ivar


def test_preprocessing_leaves_them_unchanged(pairs):
    spectra, partner = read(pairs), read_xp(pairs)
    assert to_lamost(spectra) is spectra
    assert to_gaia_xp(partner) is partner
    assert spectra.prepared["method"] == "interpolate"  # as published


@pytest.mark.parametrize(("pixels", "tower"), [(1462, "lamost"), (343, "gaia_xp")])
def test_the_tower_is_identified_by_the_number_of_pixels(tmp_path, pixels, tower):
    path, ivar = tmp_path / "tower.h5", np.full((4, pixels, 1), 2.0, dtype=np.float32)
    values = flux(4, pixels)
    values[1, 5], ivar[2, 7], values[3] = np.nan, 0, np.nan
    with h5py.File(path, "w") as file:
        file["train/spectra"], file["train/ivar"] = values, ivar
    spectra = read(path)
    assert (spectra.prepared["tower"], spectra.survey, spectra.has_ivar) == (tower, tower, True)
    masked = [np.flatnonzero(row).tolist() for row in spectra.mask]
    assert masked == [[], [5], [7], list(range(pixels))]
    assert set(spectra.flux[spectra.mask].tolist()) == {float(tower == "lamost")}
    assert (spectra.ivar[spectra.mask] == 0).all()
    assert spectra.meta["flag"].tolist() == ["good", "good", "good", "no_coverage"]
    assert read_xp(path) is None


@pytest.mark.parametrize("shape", [(4, 100, 1), (4, 1462, 2), (1462,)])
def test_other_shapes_are_refused(tmp_path, shape):
    path = tmp_path / "odd.h5"
    with h5py.File(path, "w") as file:
        file["train/spectra"] = np.ones(shape)
    with pytest.raises(DataError, match=r"odd\.h5"):
        read(path)


def test_files_without_spectra_are_refused(tmp_path):
    path = tmp_path / "other.h5"
    with h5py.File(path, "w") as file:
        file["train/images"] = np.ones((2, 2))
    with pytest.raises(DataError, match="no wavelength and no flux"):
        read(path)
    with pytest.raises(DataError, match="no group train, val or test"):
        read(path, "specclip")
