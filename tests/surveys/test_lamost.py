"""The LAMOST reader on synthetic files of its three layouts, and on real files if available."""

import gzip
import logging

import numpy as np
import pytest
from astropy.io import fits

from specjax.errors import DataError
from specjax.preprocess import to_lamost
from specjax.surveys import lamost, read

PIXELS = 60
GRID = 10 ** (3.5682 + 1e-4 * np.arange(PIXELS))
CARDS = {"TELESCOP": "LAMOST", "RA": 330.9, "DEC": -0.17, "CLASS": "STAR", "SUBCLASS": "F4", "Z": 3e-5}


def rows(pixels=PIXELS):
    flux = 100.0 + np.arange(pixels)
    ivar = np.full(pixels, 0.25)
    ivar[5] = 0
    andmask, ormask = np.zeros(pixels), np.zeros(pixels)
    andmask[7] = 4
    ormask[[7, 8]] = 4
    return [flux, ivar, 10 ** (3.5682 + 1e-4 * np.arange(pixels)), andmask, ormask]


def write(path, hdus):
    """Write a gzipped file, as published."""
    plain = path.with_suffix(".tmp")
    fits.HDUList(hdus).writeto(plain)
    path.write_bytes(gzip.compress(plain.read_bytes()))
    plain.unlink()
    return path


def write_image(path, columns=None, **cards):
    hdu = fits.PrimaryHDU(np.asarray(columns or rows(), dtype=">f4"))
    hdu.header.update({**CARDS, "COEFF0": 3.5682, "COEFF1": 1e-4, "OBSID": 103232, "SNRG": 94.11, **cards})
    return write(path, [hdu])


def write_table(path, names=("FLUX", "IVAR", "WAVELENGTH", "ANDMASK", "ORMASK"), **cards):
    primary = fits.PrimaryHDU()
    primary.header.update({**CARDS, "OBSID": 3703110, "SNRG": 19.35, **cards})
    columns = [
        fits.Column(name, f"{PIXELS}E", array=values[None])
        for name, values in zip(names, rows(), strict=True)
    ]
    return write(path, [primary, fits.BinTableHDU.from_columns(columns, name="COADD")])


@pytest.fixture
def folder(tmp_path):
    write_image(tmp_path / "spec-1-A_sp01-001.fits.gz")
    write_image(tmp_path / "spec-1-A_sp01-002.fits.gz", rows(PIXELS - 4))
    write_table(tmp_path / "x.fits.gz", COEFF0=3.5682, COEFF1=1e-4)
    return tmp_path


def test_an_image_is_read_with_its_metadata(folder):
    spectra = read(folder / "spec-1-A_sp01-001.fits.gz")
    assert spectra.survey == "lamost"
    assert spectra.medium == "vacuum"
    assert spectra.id.tolist() == ["spec-1-A_sp01-001"]
    np.testing.assert_allclose(spectra.wavelength, GRID, rtol=1e-14)
    np.testing.assert_array_equal(spectra.flux[0], 100.0 + np.arange(PIXELS))
    assert np.flatnonzero(spectra.mask[0]).tolist() == [5, 7]  # not 8: only one exposure was bad
    assert spectra.ivar[0, 8] == 0.25
    meta = {key: column[0] for key, column in spectra.meta.items()}
    assert meta["obsid"] == "103232"
    assert (meta["ra"], meta["dec"], meta["redshift"]) == (330.9, -0.17, 3e-5)
    assert (meta["snr"], meta["snr_g"], meta["class"], meta["subclass"]) == (94.11, 94.11, "STAR", "F4")
    assert np.isnan(meta["snr_z"])


def test_wavelengths_of_the_pilot_survey_come_from_the_header(tmp_path):
    columns = rows()
    columns[2] = np.full(PIXELS, 1.02)
    path = write_image(tmp_path / "spec-55862-B6212_sp06-008.fits.gz", columns, SN_G=29.39, SNRG=None)
    spectra = read(path)
    np.testing.assert_allclose(spectra.wavelength, GRID, rtol=1e-14)


def test_old_keywords_of_the_snr_are_read(tmp_path):
    hdu = fits.PrimaryHDU(np.asarray(rows(), dtype=">f4"))
    hdu.header.update({**CARDS, "COEFF0": 3.5682, "COEFF1": 1e-4, "SN_G": 29.39, "Z": -9999.0})
    spectra = read(write(tmp_path / "spec.fits.gz", [hdu]))
    assert spectra.meta["snr"].tolist() == [29.39]
    assert spectra.meta["obsid"].tolist() == [""]
    assert np.isnan(spectra.meta["redshift"]).all()


def test_a_table_gives_the_same_as_an_image(folder):
    image, table = read(folder / "spec-1-A_sp01-001.fits.gz"), read(folder / "x.fits.gz")
    for name in ("wavelength", "flux", "ivar", "mask"):
        np.testing.assert_array_equal(getattr(table, name), getattr(image, name))


def test_wavelengths_of_a_table_are_used_without_coefficients(tmp_path):
    spectra = read(write_table(tmp_path / "x.fits.gz"))
    np.testing.assert_allclose(spectra.wavelength, GRID, rtol=6e-8)  # single precision


def test_spectra_of_different_lengths_share_one_grid(folder):
    spectra = read(folder)
    assert spectra.id.tolist() == ["spec-1-A_sp01-001", "spec-1-A_sp01-002", "x"]
    assert spectra.wavelength.shape == (PIXELS,)
    assert spectra.mask[1, -4:].all()
    assert not spectra.mask[1, 10:-4].any()


def test_bad_files_are_reported_and_left_out(folder, caplog):
    (folder / "a.fits.gz").write_bytes(b"")
    victim = folder / "spec-1-A_sp01-002.fits.gz"
    victim.write_bytes(victim.read_bytes()[:400])
    with caplog.at_level(logging.WARNING):
        spectra = read(folder)
    assert spectra.id.tolist() == ["spec-1-A_sp01-001", "x"]
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 2
    assert all("\n" not in line for line in lines)
    assert "a.fits.gz" in lines[0]
    assert "spec-1-A_sp01-002.fits.gz" in lines[1]


def test_a_folder_of_bad_files_is_refused(tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.fits").write_bytes(b"")
    with pytest.raises(DataError, match=r"none of 2 files is a LAMOST spectrum; the first: .*a\.fits"):
        lamost.read(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no file that could be a LAMOST spectrum"):
        lamost.read(tmp_path / "empty")


@pytest.mark.parametrize("keep", [0, 0.05, 0.5, 0.9])
def test_a_truncated_file_is_refused_in_one_line(folder, keep):
    path = folder / "spec-1-A_sp01-001.fits.gz"
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep * len(whole))])
    for reader in (read, lamost.read):
        with pytest.raises(DataError, match=path.name) as caught:
            reader(path)
        assert "\n" not in str(caught.value)


def test_other_layouts_are_refused_with_a_reason(tmp_path):
    one = tmp_path / "one.fits.gz"
    write_image(one, [np.ones(PIXELS), np.ones(PIXELS)])
    with pytest.raises(DataError, match=r"one\.fits\.gz.*not five rows"):
        read(one)
    two = write_table(tmp_path / "two.fits.gz", names=("FLUX", "ERROR", "WAVELENGTH", "ANDMASK", "ORMASK"))
    with pytest.raises(DataError, match="no column IVAR"):
        read(two)
    primary = fits.PrimaryHDU()
    primary.header.update(CARDS)
    with pytest.raises(DataError, match="no image in HDU 0 and no table in HDU 1"):
        read(write(tmp_path / "three.fits.gz", [primary]))
    wrong = write_image(tmp_path / "four.fits.gz", COEFF0=3.5684)
    with pytest.raises(DataError, match=r"2\.0 pixels from its COEFF0"):
        read(wrong)
    columns = rows()
    columns[2] = np.ones(PIXELS)
    hdu = fits.PrimaryHDU(np.asarray(columns, dtype=">f4"))
    hdu.header.update(CARDS)
    with pytest.raises(DataError, match="neither COEFF0 and COEFF1 nor wavelengths"):
        read(write(tmp_path / "five.fits.gz", [hdu]))


@pytest.mark.parametrize(
    ("release", "count", "pixels"),
    [("dr8", 40, 3909), ("dr7", 16, 3909), ("pilot", 30, 3904), ("dr10_table", 25, 3909)],
)
def test_real_files(real_data, release, count, pixels, caplog):
    spectra = read(real_data / "lamost" / release)
    assert not caplog.records
    assert spectra.flux.shape == (count, pixels)
    assert spectra.wavelength.shape == (pixels,)
    assert len(set(spectra.id.tolist())) == count
    assert np.isfinite(spectra.meta["ra"]).all()
    assert (spectra.meta["snr"] > 1).all()
    stars = spectra[spectra.meta["class"] == "STAR"]
    normalised = to_lamost(stars)
    flags = normalised.meta["flag"]
    assert np.isin(flags, ["good", "masked_fraction", "too_fast"]).all()
    assert (flags == "masked_fraction").sum() <= 1  # one star of DR8 has 600 bad pixels
    fast = np.abs(stars.meta["redshift"]) > 250 / 299792.458
    np.testing.assert_array_equal(flags == "too_fast", fast & (flags != "masked_fraction"))
    assert fast.sum() <= 2  # halo stars in DR8
    level = np.nanmedian(np.where(normalised.mask, np.nan, normalised.flux), axis=1)
    assert ((level > 0.6) & (level < 1.05)).all()  # cool stars are far below the continuum fit
