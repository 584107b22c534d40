import h5py
import numpy as np
import pytest

from specjax.errors import DataError
from specjax.prepare import prepare_spectra
from specjax.progress import silent
from specjax.surveys import prepared, read, read_xp
from tests.prepare.stars import write_stars


@pytest.fixture
def path(tmp_path):
    prepare_spectra([write_stars(tmp_path / "raw", 3)], tmp_path / "p.h5", workers=1, say=silent)
    return tmp_path / "p.h5"


def test_slices_are_copied_from_the_file(path):
    whole = read(path)
    part = whole[1:]
    np.testing.assert_array_equal(part.flux, np.asarray(whole.flux)[1:])
    assert part.flux.flags.writeable  # a copy of these rows
    assert part.meta["flag"].tolist() == ["", ""]


def test_pixels_are_checked_when_they_are_sliced(path):
    with h5py.File(path, "a") as file:
        file["flux"][1, 100] = np.nan
    whole = read(path)
    assert whole[[0, 2]].id.tolist() == ["star 0", "star 2"]
    with pytest.raises(DataError, match="must be finite"):
        whole[:2]


def test_a_repacked_file_is_read(path, tmp_path):
    expected, packed = read(path), tmp_path / "packed.h5"
    with h5py.File(path) as old, h5py.File(packed, "w") as new:
        new.attrs.update(old.attrs)
        for name in ("wavelength", "id", "meta"):
            old.copy(name, new)
        for name in ("flux", "ivar", "mask"):
            new.create_dataset(name, data=old[name][:], compression="gzip")
    again = read(packed)
    np.testing.assert_array_equal(again.flux, expected.flux)
    np.testing.assert_array_equal(again.mask, expected.mask)


@pytest.mark.parametrize("name", ["flux", "mask", "id", "meta", "wavelength"])
def test_a_file_without_one_of_its_parts_is_refused(path, name):
    with h5py.File(path, "a") as file:
        del file[name]
    with pytest.raises(DataError, match=r"p\.h5 is not a complete prepared file"):
        read(path)


def test_a_damaged_file_is_refused(path):
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="not a readable HDF5 file"):
        read(path)
    assert read_xp(path) is None


def test_a_later_version_is_refused(path):
    with h5py.File(path, "a") as file:
        file.attrs["version"] = prepared.VERSION + 1
    with pytest.raises(DataError, match="later version"):
        read(path)
