import h5py
import numpy as np
import pytest

from specjax.errors import DataError
from specjax.prepare import Options, prepare_spectra
from specjax.progress import silent
from specjax.surveys import prepared, read, read_xp
from tests.damage import flip, outcomes, same_spectra, some_bits
from tests.prepare.stars import WIDE, write_stars


@pytest.fixture
def path(tmp_path):
    prepare_spectra([write_stars(tmp_path / "raw", 3)], tmp_path / "p.h5", workers=1, say=silent)
    return tmp_path / "p.h5"


def test_slices_are_copied_from_the_file(path):
    whole = read(path)
    part = whole[1:]
    np.testing.assert_array_equal(part.flux, np.asarray(whole.flux)[1:])
    assert part.flux.flags.writeable  # a copy of these rows
    assert part.meta["flag"].tolist() == ["good", "good"]


def test_pixels_are_checked_when_they_are_sliced(path):
    with h5py.File(path, "a") as file:
        file["flux"][1, 100] = np.nan
        del file["crc32"]
        file.attrs["version"] = 1
    whole = read(path)
    assert whole[[0, 2]].id.tolist() == ["star 0", "star 2"]
    with pytest.raises(DataError, match="must be finite"):
        whole[:2]


def test_a_repacked_file_is_read(path, tmp_path):
    expected, packed = read(path), tmp_path / "packed.h5"
    with h5py.File(path) as old, h5py.File(packed, "w") as new:
        new.attrs.update(old.attrs)
        for name in ("wavelength", "id", "meta", "crc32"):
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
    with pytest.raises(DataError, match=rf"p\.h5 is damaged: it lacks {name}"):
        read(path)
    with h5py.File(path, "a") as file:
        del file["crc32"]
        file.attrs["version"] = 1
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


@pytest.fixture
def both(tmp_path):
    """A file with a Gaia XP side."""
    raw = write_stars(tmp_path / "raw", 3, grid=WIDE)
    prepare_spectra([raw], tmp_path / "both.h5", options=Options(fwhm_from=8.0), workers=1, say=silent)
    return tmp_path / "both.h5"


def test_no_flipped_bit_changes_spectra_without_a_word(path):
    data, expected = path.read_bytes(), read(path)
    expected = expected[:]  # in memory
    counts, silent_bits = outcomes(
        path, read, lambda found: same_spectra(found, expected), some_bits(data, 240)
    )
    assert silent_bits == []
    assert counts["refused"] > 0 < counts["reported"]


def test_no_flipped_bit_changes_gaia_xp_spectra_without_a_word(both):
    data, expected = both.read_bytes(), read_xp(both)[:]

    def same(found):
        damaged = found is None or found.mask.all(axis=1)
        return found is None or same_spectra(found[~damaged], expected)

    counts, silent_bits = outcomes(both, read_xp, same, some_bits(data, 160, seed=1))
    assert silent_bits == []
    assert counts["reported"] > 0


def test_the_rows_of_both_sides_stay_together(both):
    whole, partner = read(both)[:], read_xp(both)[:]
    with h5py.File(both, "a") as file:
        file["ivar"][0, 7] *= 1.5
        file["gaia_xp/flux"][2, 7] *= 1.5
    left, left_xp = read(both), read_xp(both)
    assert same_spectra(left, whole[1:])
    assert left_xp.id.tolist() == left.id.tolist()
    assert left_xp.mask.all(axis=1).tolist() == [False, True]
    assert left_xp.meta["flag"].tolist() == ["good", "no_partner"]
    np.testing.assert_array_equal(left_xp.flux[0], partner.flux[1])


def test_every_bit_of_a_row_costs_that_row_alone(path, caplog):
    with h5py.File(path) as file:
        start = file["flux"].id.get_offset() + 1462 * 4
    data, whole = path.read_bytes(), read(path)[:]
    for bit in range(8 * start, 8 * start + 64):
        path.write_bytes(flip(data, bit))
        assert same_spectra(read(path), whole[[0, 2]])
    assert "row 1 (star 1) of the spectra is damaged" in caplog.text
    with pytest.raises(DataError, match=r"row 1 \(star 1\) of the spectra is damaged"):
        prepared.read(path, rows=(1, 2))


def test_neighbouring_damaged_rows_are_one_line(path, caplog):
    with h5py.File(path, "a") as file:
        file["mask"][1:] = ~file["mask"][1:]
    assert read(path).id.tolist() == ["star 0"]
    assert "each of rows 1 to 2 (star 1 to star 2) of the spectra is damaged" in caplog.text


def test_files_of_earlier_versions_are_read_with_one_warning(path, caplog):
    expected = read(path)[:]
    with h5py.File(path, "a") as file:
        del file["crc32"]
    with pytest.raises(DataError, match="it lacks its checksums"):
        read(path)
    with h5py.File(path, "a") as file:
        file.attrs["version"] = 1
    for _ in range(2):
        assert same_spectra(read(path), expected)
    assert caplog.text.count("has no checksums") == 1


def test_empty_flags_of_earlier_versions_are_good(both):
    with h5py.File(both, "a") as file:
        del file["crc32"]
        file.attrs["version"] = 1
        for name in ("meta/flag", "gaia_xp/meta/flag"):
            del file[name]
            file[name] = np.array([b"", b"too_fast", b""])
    for spectra in (read(both), read_xp(both)):
        assert spectra.meta["flag"].tolist() == ["good", "too_fast", "good"]


def test_a_column_that_was_added_is_read(path):
    with h5py.File(path, "a") as file:
        file["meta/fe_h"] = np.arange(3.0)
    assert read(path).meta["fe_h"].tolist() == [0, 1, 2]
