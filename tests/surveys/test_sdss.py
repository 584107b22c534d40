import numpy as np
import pytest
from astropy.io import fits

from specjax.errors import DataError
from specjax.surveys import read

PIXELS = 50


def write_spec(path, start=0, names=("flux", "loglam", "ivar", "and_mask"), catalogue=True):
    mask = np.zeros(PIXELS, dtype=int)
    mask[4] = 1 << 24
    values = {
        "flux": np.arange(PIXELS) + 1.0,
        "loglam": 3.58 + 1e-4 * np.arange(start, start + PIXELS),
        "ivar": np.where(np.arange(PIXELS) == 6, 0, 2.0),
        "and_mask": mask,
    }
    coadd = [fits.Column(name, "J" if name == "and_mask" else "E", array=values[name]) for name in names]
    primary = fits.PrimaryHDU()
    primary.header.update(PLUG_RA=150.5, PLUG_DEC=2.0, PLATEID=266)
    row = [
        fits.Column("Z", "E", array=[1e-4]),
        fits.Column("ZWARNING", "J", array=[0]),
        fits.Column("CLASS", "6A", array=["STAR"]),
        fits.Column("SN_MEDIAN_ALL", "E", array=[20.5]),
    ]
    hdus = [primary, fits.BinTableHDU.from_columns(coadd, name="COADD")]
    if catalogue:
        hdus.append(fits.BinTableHDU.from_columns(row, name="SPECOBJ"))
    fits.HDUList(hdus).writeto(path)
    return path


def test_a_file_is_read_with_its_metadata(tmp_path):
    spectra = read(write_spec(tmp_path / "spec-0266-51602-0001.fits"))
    assert spectra.survey == "sdss"
    assert spectra.id.tolist() == ["spec-0266-51602-0001"]
    # loglam is single precision: 1e-7 of 3.6, times ln 10
    np.testing.assert_allclose(spectra.wavelength, 10 ** (3.58 + 1e-4 * np.arange(PIXELS)), rtol=1e-6)
    assert np.flatnonzero(spectra.mask[0]).tolist() == [4, 6]
    meta = {key: column[0] for key, column in spectra.meta.items()}
    assert (meta["ra"], meta["dec"], meta["class"], meta["zwarn"]) == (150.5, 2.0, "STAR", 0)
    assert meta["redshift"] == pytest.approx(1e-4)


def test_a_folder_shares_one_grid_and_leaves_out_bad_files(tmp_path, caplog):
    write_spec(tmp_path / "spec-1.fits")
    write_spec(tmp_path / "spec-2.fits", start=3, catalogue=False)
    write_spec(tmp_path / "spec-3.fits", names=("flux", "loglam"))
    spectra = read(tmp_path)
    assert spectra.flux.shape == (2, PIXELS + 3)
    assert spectra.wavelength.ndim == 1
    assert spectra.mask[1, :3].all()
    assert spectra.meta["zwarn"].tolist() == [0, -1]
    assert [
        "spec-3.fits is not an SDSS spec-lite file: HDU 1 has no column ivar" in m for m in caplog.messages
    ]
    assert len(caplog.messages) == 1


def test_a_damaged_file_is_refused(tmp_path):
    path = write_spec(tmp_path / "spec-1.fits")
    path.write_bytes(path.read_bytes()[:8000])
    with pytest.raises(DataError, match=r"spec-1\.fits"):
        read(path)
