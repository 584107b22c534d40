import resource

import h5py
import numpy as np
import pytest

from specjax.errors import DataError
from specjax.preprocess import to_lamost
from specjax.preprocess.to_grid import range_used
from specjax.spectra import Spectra
from specjax.surveys import arrays, read
from tests.damage import flip, outcomes, same_spectra, some_bits

GRID = np.arange(3700.0, 5700.0, 1.0)


def content(n=2, **changes):
    rng = np.random.default_rng(0)
    data = {
        "wavelength": GRID,
        "flux": 1 + 0.1 * rng.random((n, GRID.size)),
        "id": [f"s{k}" for k in range(n)],
    }
    data |= changes
    return {key: np.asarray(value) for key, value in data.items() if value is not None}


def save(path, data):
    if path.suffix == ".npz":
        np.savez(path, **data)
    else:
        with h5py.File(path, "w") as file:
            for key, value in data.items():
                file[key] = value.astype("S") if value.dtype.kind == "U" else value
    return path


@pytest.fixture(params=["spectra.npz", "spectra.h5"])
def path(request, tmp_path):
    return tmp_path / request.param


def test_arrays_become_spectra(path):
    n, rng = 3, np.random.default_rng(1)
    data = content(
        n, ivar=rng.random((n, GRID.size)) + 1, mask=rng.random((n, GRID.size)) > 0.9, snr=np.arange(3.0)
    )
    spectra = read(save(path, data))
    np.testing.assert_array_equal(spectra.flux, data["flux"])
    np.testing.assert_array_equal(spectra.ivar, data["ivar"])
    np.testing.assert_array_equal(spectra.mask, data["mask"])
    assert spectra.id.tolist() == ["s0", "s1", "s2"]
    assert spectra.meta["snr"].tolist() == [0, 1, 2]
    assert (spectra.medium, spectra.survey, spectra.has_ivar) == ("vacuum", "spectra", True)


def test_medium_and_unit_come_from_the_file_or_the_caller(path):
    spectra = read(save(path, content(wavelength=GRID / 10)), wavelength_medium="air", wavelength_unit="nm")
    assert spectra.medium == "air"
    np.testing.assert_allclose(spectra.wavelength, GRID)
    declared = content(wavelength=GRID / 10, wavelength_medium="air", wavelength_unit="nm", survey="mine")
    path.unlink()
    assert (read(save(path, declared)).medium, read(path).survey) == ("air", "mine")
    with pytest.raises(DataError, match="wavelength medium is air, not vacuum"):
        read(path, wavelength_medium="vacuum")


def test_integer_and_missing_ids(path):
    assert read(save(path, content(id=[17, 4]))).id.tolist() == ["17", "4"]
    path.unlink()
    assert read(save(path, content(id=None))).id.tolist() == ["0", "1"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"wavelength": None}, "no wavelength: it contains flux, id"),
        ({"wavelength": GRID / 10}, "if they are in nm"),
        ({"wavelength": GRID / 1e4}, "if they are in um"),
        ({"flux": np.ones((GRID.size, 2))}, "transposed"),
        ({"ivar": np.ones((2, 3))}, r"ivar \(2, 3\) does not fit"),
        ({"id": ["a"]}, "id has shape"),
        ({"wavelength": np.r_[GRID[1], GRID[1:]]}, "occur twice"),
    ],
)
def test_bad_content_is_refused_in_one_line_with_the_file_name(path, changes, message):
    with pytest.raises(DataError, match=message) as caught:
        read(save(path, content(**changes)))
    assert path.name in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("garbage", [b"", b"garbage", b"PK\x03\x04 broken"])
def test_a_damaged_file_is_refused(path, garbage):
    path.write_bytes(garbage)
    with pytest.raises(DataError, match="not a readable"):
        read(path)


def test_pickled_objects_are_refused(tmp_path):
    path = tmp_path / "x.npz"
    np.savez(path, wavelength=GRID, flux=np.array([[1.0], [1.0, 2.0]], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match="not a readable"):
        read(path)


@pytest.mark.parametrize("low", [4000.0, 4200.0, 5000.0, 5600.0])
def test_missing_coverage_is_flagged(path, low):
    part = low < GRID
    data = content()
    spectra = to_lamost(read(save(path, {**data, "wavelength": GRID[part], "flux": data["flux"][:, part]})))
    missing = np.clip((np.log10(low) - 3.602) / 0.1461, 0, 1)
    np.testing.assert_allclose(spectra.meta["masked_fraction"], missing, atol=0.002)  # 1 or 2 pixels of 1462
    expected = {4000.0: "good", 4200.0: "good", 5000.0: "masked_fraction", 5600.0: "no_coverage"}[low]
    assert spectra.meta["flag"].tolist() == [expected] * 2


def test_a_range_of_rows_equals_that_part_of_the_whole(path):
    grid = np.arange(3700.0, 5700.0, 100.0)
    count = grid.size  # as many spectra as pixels: the shared wavelengths must not be cut
    flux = np.random.default_rng(0).random((count, count))
    save(path, content(count, snr=np.arange(count), flux=flux, wavelength=grid))
    whole, part = read(path), arrays.read(path, rows=(5, 9))
    np.testing.assert_array_equal(part.flux, whole.flux[5:9])
    np.testing.assert_array_equal(part.wavelength, grid)
    assert part.id.tolist() == whole.id[5:9].tolist()
    assert part.meta["snr"].tolist() == [5, 6, 7, 8]
    path.unlink()
    save(path, content(3, id=None))
    assert arrays.read(path, rows=(1, 3)).id.tolist() == ["1", "2"]


def test_written_spectra_are_read_back(tmp_path):
    spectra = read(save(tmp_path / "a.npz", content(wavelength_medium="air", teff=[1.0, 2.0])))
    arrays.write(tmp_path / "b.npz", spectra)
    again = read(tmp_path / "b.npz")
    for name in ("wavelength", "flux", "ivar", "mask", "id", "medium", "survey", "has_ivar"):
        np.testing.assert_array_equal(getattr(again, name), getattr(spectra, name))
    assert again.meta["teff"].tolist() == [1, 2]


def test_a_file_written_in_parts_is_read_back(tmp_path):
    path = tmp_path / "parts.h5"
    flux = np.arange(20.0).reshape(5, 4)
    with arrays.stream(path, 5, np.arange(4000.0, 4004.0), survey="mine", notes={"made": "by hand"}) as file:
        for rows in (slice(0, 2), slice(2, 5)):
            file.append(flux[rows] + 1, flux[rows] + 2, flux[rows] == 7)
        file.add_columns({"id": np.array(list("abcde")), "teff": np.arange(5.0)})
        assert not path.exists()
    spectra = arrays.read(path)
    np.testing.assert_array_equal(spectra.flux, flux + 1)
    np.testing.assert_array_equal(spectra.ivar, flux + 2)
    np.testing.assert_array_equal(spectra.mask, flux == 7)
    assert (spectra.survey, spectra.medium, spectra.id.tolist()) == ("mine", "vacuum", list("abcde"))
    assert spectra.meta["teff"].tolist() == [0, 1, 2, 3, 4]
    with arrays.open_hdf5(path) as file:
        assert file.attrs["made"] == b"by hand"


def test_an_error_between_parts_leaves_no_file(tmp_path):
    with (
        pytest.raises(ZeroDivisionError),
        arrays.stream(tmp_path / "parts.h5", 5, np.arange(4.0), survey="mine", notes={}),
    ):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("limit", [1000, 5000, 60_000, 200_000, 1_000_000])
def test_a_file_that_cannot_be_written_is_refused_in_one_line(tmp_path, limit):
    """Whether its header, its spectra or what is kept until it is closed exceeds a limit."""

    def write():
        with arrays.stream(tmp_path / "s.h5", 100, np.arange(400.0), survey="mine", notes={}) as file:
            file.append(np.ones((100, 400)), np.ones((100, 400)), np.zeros((100, 400), bool))
            file.add_columns({"teff": np.zeros(100), "long": np.zeros(100_000)})

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(DataError, match=r"^cannot write .*s.h5: File too large$"):
            write()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []


def test_spectra_that_do_not_fit_on_the_disk_are_refused(tmp_path):
    arrays.check_space(tmp_path / "new" / "s.h5", 10, 1000)
    with pytest.raises(DataError, match=r"s.h5 would take 9,000,000.0 GB, and only .* free in"):
        arrays.check_space(tmp_path / "new" / "s.h5", 10**12, 1000)


def test_notes_of_an_npz_file_are_not_columns(tmp_path):
    spectra = Spectra.build(np.arange(4000.0, 4004.0), np.ones((1, 4)))
    arrays.write(tmp_path / "s.npz", spectra, {"made": "by hand"})
    assert arrays.read(tmp_path / "s.npz").meta == {}
    with np.load(tmp_path / "s.npz") as file:
        assert str(file["made"]) == "by hand"


@pytest.fixture
def streamed(tmp_path):
    """An HDF5 file that specjax wrote."""
    path, rng, shape = tmp_path / "written.h5", np.random.default_rng(2), (6, GRID.size)
    with arrays.stream(path, 6, GRID, survey="mine", notes={}) as stream:
        stream.append(rng.random(shape), rng.random(shape), rng.random(shape) > 0.9)
        stream.add_columns({"id": np.array([f"s{k}" for k in range(6)]), "fe_h": rng.normal(size=6)})
    return path


def test_no_flipped_bit_of_a_written_file_changes_spectra_without_a_word(streamed):
    expected = arrays.read(streamed)
    bits = some_bits(streamed.read_bytes(), 160)
    counts, silent = outcomes(streamed, arrays.read, lambda found: same_spectra(found, expected), bits)
    assert silent == []
    assert counts["refused"] > 0 < counts["reported"]


def test_damaged_rows_of_a_written_file_are_left_out_of_a_part_of_it(streamed, caplog):
    expected = arrays.read(streamed)
    with h5py.File(streamed, "a") as file:
        file["flux"][3, 5] += 1
    assert same_spectra(arrays.read(streamed, rows=(2, 5)), expected[[2, 4]])
    assert "row 3 (s3) of the spectra is damaged" in caplog.text


def test_no_flipped_bit_of_an_npz_file_changes_spectra_without_a_word(tmp_path):
    path = save(tmp_path / "a.npz", content(3, ivar=np.ones((3, GRID.size)), wavelength_medium="air"))
    expected = arrays.read(path)
    bits = some_bits(path.read_bytes(), 160)
    counts, silent = outcomes(path, arrays.read, lambda found: same_spectra(found, expected), bits)
    assert silent == []
    assert counts["refused"] > 0


def test_a_dataset_that_cannot_be_opened_is_not_overlooked(streamed):
    with h5py.File(streamed) as file:
        header = h5py.h5o.get_info(file["mask"].id).addr
    streamed.write_bytes(flip(streamed.read_bytes(), 8 * (header + 20)))
    with pytest.raises(DataError, match="is damaged: its mask cannot be opened"):
        arrays.read(streamed)


def wide_spectra(case):
    """Spectra far beyond the range of the LAMOST tower, with a gap and a run of zeros across its end."""
    random = np.random.default_rng(3)
    grid = np.arange(3000.0, 9000.0, 1.3)
    end = int(np.searchsorted(grid, 5700.0))
    flux = random.normal(1.0, 0.1, (5, grid.size)) * (2.0 - grid / 9000.0)
    flux[1, end - 3 : end + 40] = 0.0
    mask = random.random(flux.shape) < 0.02
    mask[2, end - 20 : end + 100] = True
    kept = np.ones(grid.size, bool)
    wavelength = grid
    if case == "gap":
        kept[end - 1 : end + 120] = False
    if case == "own grids":
        wavelength = grid + 40.0 * np.arange(5)[:, None]
    if case == "log10":
        wavelength = np.log10(grid)
    unit = "log10" if case == "log10" else "angstrom"
    ivar = random.uniform(50.0, 150.0, flux.shape)
    found = {"wavelength": wavelength, "flux": flux, "ivar": ivar, "mask": mask}
    found = {name: array[..., kept] for name, array in found.items()}
    return content(5, **found, wavelength_unit=unit, wavelength_medium="air" if case == "air" else "vacuum")


@pytest.mark.parametrize("fwhm", [None, 20.0])
@pytest.mark.parametrize("case", ["one grid", "gap", "own grids", "log10", "air"])
def test_pixels_that_the_tower_does_not_see_can_be_left_out(path, case, fwhm):
    save(path, wide_spectra(case))
    whole = arrays.read(path)
    part = arrays.read(path, within=range_used(fwhm))
    assert part.flux.shape[1] < 0.6 * whole.flux.shape[1]
    expected, made = to_lamost(whole, fwhm=fwhm), to_lamost(part, fwhm=fwhm)
    for name in ("flux", "ivar", "mask"):
        np.testing.assert_array_equal(getattr(made, name), getattr(expected, name))
    assert made.meta["flag"].tolist() == expected.meta["flag"].tolist()


@pytest.mark.parametrize(
    "changes",
    [
        {"wavelength": GRID / 10},
        {"wavelength": np.r_[GRID[:-1], GRID[-2]]},
        {"ivar": np.ones((2, 5))},
        {"wavelength": GRID[:-1]},
    ],
)
def test_leaving_out_pixels_hides_no_fault_of_a_file(path, changes):
    save(path, content(**changes))
    with pytest.raises(DataError) as whole:
        arrays.read(path)
    with pytest.raises(DataError) as part:
        arrays.read(path, within=(4000.0, 5000.0))
    assert str(part.value) == str(whole.value)


def test_spectra_outside_the_range_are_read_as_a_whole(path):
    save(path, content(wavelength=GRID + 4000.0))
    assert arrays.read(path, within=(4000.0, 5000.0)).flux.shape == (2, GRID.size)
