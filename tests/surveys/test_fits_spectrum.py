import gzip

import numpy as np
import pytest
from astropy.io import fits

from specjax.errors import DataError
from specjax.surveys import read
from specjax.surveys.io import sniff
from specjax.surveys.registry import is_undeclared, recognise

GRID = np.linspace(4000.0, 5600.0, 161)
RNG = np.random.default_rng(0)
FLUX = RNG.normal(1.0, 0.1, GRID.size)
ERROR = np.full(GRID.size, 0.1)


def table(path, columns, units=None, header=None):
    """Write {name: (p,) or (n, p)} as a binary table."""
    made = []
    for name, values in columns.items():
        values = np.asarray(values)
        form = f"{values.shape[1]}D" if values.ndim == 2 else "20A" if values.dtype.kind == "U" else "D"
        made.append(fits.Column(name, form, array=values, unit=(units or {}).get(name)))
    hdu = fits.BinTableHDU.from_columns(made)
    hdu.header.update(header or {})
    fits.HDUList([fits.PrimaryHDU(), hdu]).writeto(path)
    return path


def image(path, header, extensions=None, flux=FLUX):
    hdus = [fits.PrimaryHDU(flux)]
    hdus[0].header.update(header)
    hdus += [fits.ImageHDU(values, name=name) for name, values in (extensions or {}).items()]
    fits.HDUList(hdus).writeto(path)
    return path


LINEAR = {
    "CRVAL1": GRID[0],
    "CDELT1": GRID[1] - GRID[0],
    "CRPIX1": 1.0,
    "CTYPE1": "WAVE",
    "CUNIT1": "Angstrom",
}
STEP = 1e-4


class TestTables:
    @pytest.mark.parametrize(
        ("name", "values", "unit"),
        [
            ("WAVE", GRID, None),
            ("lambda", GRID / 10, "nm"),
            ("Wavelength", GRID / 1e4, "um"),
            ("wave", GRID, "Angstroms"),
            ("LOGLAM", np.log10(GRID), None),
        ],
    )
    def test_rows_are_pixels(self, tmp_path, name, values, unit):
        path = table(tmp_path / "star.fits", {name: values, "FLUX": FLUX, "ERR": ERROR}, {name: unit})
        spectra = read(path, wavelength_medium="vacuum")
        np.testing.assert_allclose(spectra.wavelength, GRID, rtol=1e-12)
        np.testing.assert_array_equal(spectra.flux[0], FLUX)
        np.testing.assert_allclose(spectra.ivar[0], 100.0)
        assert spectra.id.tolist() == ["star"]
        assert recognise(path) == "fits_spectrum"

    def test_rows_are_spectra(self, tmp_path):
        flux, ivar = np.stack([FLUX, 2 * FLUX]), np.ones((2, GRID.size))
        columns = {
            "WAVELENGTH": np.stack([GRID, GRID + 1]),
            "FLUX": flux,
            "IVAR": ivar,
            "NAME": np.array(["a", "b"]),
        }
        spectra = read(table(tmp_path / "stars.fits", columns))
        assert spectra.id.tolist() == ["a", "b"]
        np.testing.assert_array_equal(spectra.flux, flux)
        np.testing.assert_array_equal(spectra.wavelength[1], GRID + 1)

    def test_the_table_may_be_any_hdu(self, tmp_path):
        path = table(tmp_path / "star.fits", {"WAVE": GRID, "FLUX": FLUX})
        with fits.open(path) as hdus:
            hdus.insert(1, fits.BinTableHDU.from_columns([fits.Column("TARGET", "10A", array=["x"])]))
            hdus.writeto(tmp_path / "third.fits")
        np.testing.assert_array_equal(read(tmp_path / "third.fits").flux[0], FLUX)

    def test_one_row_holds_a_spectrum(self, tmp_path):
        columns = {"WAVE": GRID[None], "FLUX": FLUX[None], "SIGMA": np.where(GRID > 5000, 0.0, ERROR)[None]}
        spectra = read(table(tmp_path / "star.fits.gz", columns))
        assert spectra.flux.shape == (1, GRID.size)
        np.testing.assert_array_equal(spectra.mask[0], GRID > 5000)  # an error of 0 is none

    def test_flux_per_frequency_becomes_flux_per_wavelength(self, tmp_path):
        """F_lambda = F_nu c / lambda^2, and the relative errors stay."""
        path = table(
            tmp_path / "star.fits",
            {"WAVE": GRID, "FLUX": FLUX, "ERROR": ERROR},
            {"FLUX": "Jy", "ERROR": "Jy"},
        )
        spectra = read(path)
        shape = FLUX / GRID**2
        np.testing.assert_allclose(spectra.flux[0] / spectra.flux[0, 0], shape / shape[0], rtol=1e-10)
        np.testing.assert_allclose(spectra.flux[0] * np.sqrt(spectra.ivar[0]), FLUX / ERROR, rtol=1e-10)

    @pytest.mark.parametrize(
        ("name", "header", "medium"),
        [
            ("WAVE_AIR", {}, "air"),
            ("WAVE", {"AIRORVAC": "air"}, "air"),
            ("WAVE", {"AIRORVAC": "vac"}, "vacuum"),
            ("WAVE", {"VACUUM": False}, "air"),
            ("WAVE", {"TTYPE1": ("WAVE", "wavelength in air")}, "air"),
            ("WAVE", {"TTYPE1": ("WAVE", "Wavelength (vacuum)")}, "vacuum"),
        ],
    )
    def test_the_medium_is_the_one_that_is_declared(self, tmp_path, name, header, medium):
        path = table(tmp_path / "star.fits", {name: GRID, "FLUX": FLUX}, header=header)
        assert read(path).medium == medium
        assert not is_undeclared(path)
        with pytest.raises(DataError, match=f"declares that its wavelength medium is {medium}"):
            read(path, wavelength_medium="air" if medium == "vacuum" else "vacuum")

    @pytest.mark.parametrize("unit", ["dex(Angstrom)", "log(Angstrom)", "Angstrom", "dex"])
    def test_the_unit_of_a_logarithm_is_not_needed(self, tmp_path, unit):
        columns = {"LOGLAM": np.log10(GRID), "FLUX": FLUX}
        spectra = read(table(tmp_path / "star.fits", columns, {"LOGLAM": unit}))
        np.testing.assert_allclose(spectra.wavelength, GRID, rtol=1e-12)

    def test_a_unit_that_is_given_may_be_the_one_that_is_declared(self, tmp_path):
        path = table(tmp_path / "star.fits", {"WAVE": GRID / 10, "FLUX": FLUX}, {"WAVE": "nm"})
        np.testing.assert_allclose(read(path, wavelength_unit="nm").wavelength, GRID, rtol=1e-12)
        with pytest.raises(DataError, match="declares that its wavelength unit is nm, not angstrom"):
            read(path, wavelength_unit="angstrom")

    @pytest.mark.parametrize("suffix", sniff.SUFFIXES)
    def test_the_medium_of_a_compressed_file_is_as_undeclared(self, tmp_path, suffix):
        path = table(tmp_path / "star.fits", {"WAVE": GRID, "FLUX": FLUX})
        if suffix.endswith(".gz"):
            (tmp_path / f"star{suffix}").write_bytes(gzip.compress(path.read_bytes()))
        else:
            path.rename(tmp_path / f"star{suffix}")
        assert is_undeclared(tmp_path / f"star{suffix}")

    def test_comments_on_other_columns_declare_no_medium(self, tmp_path):
        header = {"TTYPE1": ("WAVE", "in air, not in vacuum"), "TTYPE2": ("FLUX", "above the air")}
        assert is_undeclared(table(tmp_path / "star.fits", {"WAVE": GRID, "FLUX": FLUX}, header=header))

    def test_an_undeclared_medium_can_be_given(self, tmp_path):
        path = table(tmp_path / "star.fits", {"WAVE": GRID, "FLUX": FLUX}, header={"RA": 10.0, "DEC": -5.0})
        assert is_undeclared(path)
        spectra = read(path, wavelength_medium="air")
        assert spectra.medium == "air"
        assert spectra.meta["dec"].tolist() == [-5.0]


class TestImages:
    def test_a_linear_axis(self, tmp_path):
        spectra = read(
            image(tmp_path / "star.fits", LINEAR, {"ERR": ERROR, "MASK": (GRID > 5500).astype("i2")})
        )
        np.testing.assert_allclose(spectra.wavelength, GRID, rtol=1e-12)
        np.testing.assert_allclose(spectra.ivar[0][GRID <= 5500], 100.0)
        np.testing.assert_array_equal(spectra.mask[0], GRID > 5500)
        assert spectra.medium == "vacuum"

    def test_an_axis_in_nm_from_another_pixel(self, tmp_path):
        header = {"CRVAL1": GRID[10] / 10, "CD1_1": 1.0, "CRPIX1": 11.0, "CTYPE1": "AWAV", "CUNIT1": "nm"}
        spectra = read(image(tmp_path / "star.fits", header, flux=FLUX[None]))
        np.testing.assert_allclose(spectra.wavelength, GRID, rtol=1e-12)
        assert spectra.medium == "air"

    def test_the_comment_on_the_axis_counts(self, tmp_path):
        path = image(tmp_path / "star.fits", {**LINEAR, "CTYPE1": "", "CRVAL1": (GRID[0], "first, in air")})
        assert not is_undeclared(path)
        assert read(path).medium == "air"

    def test_the_header_of_an_extension_counts(self, tmp_path):
        """Its axis, medium and unit; CD1_1 in place of a CDELT1 that is only a default."""
        made = fits.ImageHDU(FLUX, name="SPECTRUM")
        made.header.update({"CRVAL1": GRID[0], "CD1_1": 10.0, "CDELT1": 1.0, "CRPIX1": 1.0, "CTYPE1": "AWAV"})
        made.header["BUNIT"] = "Jy"
        fits.HDUList([fits.PrimaryHDU(), made]).writeto(tmp_path / "star.fits")
        spectra = read(tmp_path / "star.fits")
        np.testing.assert_allclose(spectra.wavelength, GRID, rtol=1e-12)
        assert spectra.medium == "air"
        assert not is_undeclared(tmp_path / "star.fits")
        shape = FLUX / GRID**2
        np.testing.assert_allclose(spectra.flux[0] / spectra.flux[0, 0], shape / shape[0], rtol=1e-10)

    def test_a_factor_that_is_not_known_changes_nothing(self, tmp_path):
        other = read(image(tmp_path / "other.fits", {**LINEAR, "BUNIT": "counts per pixel"}))
        np.testing.assert_array_equal(other.flux[0], FLUX)

    def test_a_flux_per_beam_is_that_of_the_beam(self, tmp_path):
        one, other = (
            read(image(tmp_path / f"{name}.fits", {**LINEAR, "BUNIT": unit}))
            for name, unit in (("a", "mJy"), ("b", "mJy/beam"))
        )
        np.testing.assert_array_equal(one.flux, other.flux)
        assert one.flux[0, 0] != FLUX[0]

    @pytest.mark.parametrize(
        ("header", "message"),
        [
            ({"CRVAL1": "blue"}, "CRVAL1 is 'blue', not a number"),
            ({"CRPIX1": "first"}, "CRPIX1 is 'first', not a number"),
            ({"CRVAL1": 0.0, "CTYPE1": "WAVE-LOG"}, "CRVAL1 = 0 cannot begin a logarithmic axis"),
        ],
    )
    def test_an_axis_without_numbers_is_refused_with_the_name_of_the_card(self, tmp_path, header, message):
        with pytest.raises(DataError, match=message):
            read(image(tmp_path / "star.fits", {**LINEAR, **header}))

    def test_logarithmic_axes(self, tmp_path):
        expected = 10 ** (3.6 + STEP * np.arange(GRID.size))
        decimal = {"CRVAL1": 3.6, "CDELT1": STEP, "CRPIX1": 1.0, "DC-FLAG": 1}
        natural = {
            "CRVAL1": 10**3.6,
            "CDELT1": 10**3.6 * STEP * np.log(10),
            "CRPIX1": 1.0,
            "CTYPE1": "WAVE-LOG",
        }
        for name, header in (("decimal", decimal), ("natural", natural)):
            spectra = read(image(tmp_path / f"{name}.fits", header))
            np.testing.assert_allclose(spectra.wavelength, expected, rtol=1e-12)

    def test_images_of_the_sky_and_other_axes_are_refused(self, tmp_path):
        sky = image(
            tmp_path / "sky.fits", {"CRVAL1": 10.0, "CDELT1": 0.1, "CTYPE1": "RA---TAN"}, flux=np.ones((9, 9))
        )
        with pytest.raises(DataError, match="HDU 0 an image 9 x 9, which specjax does not recognise"):
            read(sky)
        with pytest.raises(DataError, match="its axis is VELO, not of wavelengths"):
            read(image(tmp_path / "v.fits", {"CRVAL1": 1.0, "CDELT1": 0.1, "CTYPE1": "VELO"}))


def test_an_unknown_file_is_described_in_one_short_line(tmp_path):
    path = table(tmp_path / "labels.fits", {f"COLUMN{k}": GRID for k in range(9)})
    with pytest.raises(DataError) as caught:
        read(path)
    text = str(caught.value)
    assert "HDU 1 a table of COLUMN0, COLUMN1" in text
    assert "np.savez" in text
    assert len(text.replace(str(path), "")) < 500
    assert "\n" not in text


@pytest.mark.parametrize("values", [np.array(["x"] * GRID.size), np.zeros((2, 3))])
def test_columns_that_do_not_fit_are_refused(tmp_path, values):
    columns = (
        {"WAVE": GRID, "FLUX": values} if values.ndim == 1 else {"WAVE": np.ones((2, 4)), "FLUX": values}
    )
    with pytest.raises(DataError, match=r"bad\.fits"):
        read(table(tmp_path / "bad.fits", columns))
