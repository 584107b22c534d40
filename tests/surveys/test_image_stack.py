import numpy as np
import pytest
from astropy.io import fits

from specjax.errors import DataError
from specjax.surveys import image_stack, read


def write(path, **images):
    hdus = [fits.ImageHDU(np.asarray(data), name=name) for name, data in images.items()]
    fits.HDUList([fits.PrimaryHDU(), *hdus]).writeto(path)
    return path


def test_rows_of_images_are_spectra(tmp_path):
    flux, ivar = np.ones((2, 9), dtype=">f4"), np.eye(2, 9)
    spectra = read(write(tmp_path / "stack.fits", FLUX=flux, IVAR=ivar, WAVE=4000.0 + np.arange(9)))
    assert spectra.id.tolist() == ["stack-0", "stack-1"]
    np.testing.assert_array_equal(spectra.mask, ivar == 0)


def test_inconsistent_images_are_refused(tmp_path):
    path = write(tmp_path / "stack.fits", FLUX=np.ones((2, 9)), WAVE=4000.0 + np.arange(8))
    with pytest.raises(DataError, match=r"stack\.fits: wavelength \(8,\) does not fit"):
        read(path)
    path = write(tmp_path / "other.fits", FLUX=np.ones((2, 9)))
    with pytest.raises(DataError, match=r"other\.fits is not .*: it has FLUX"):
        image_stack.read(path)


def test_a_real_stack(real_data):
    spectra = read(real_data / "desi" / "fastspecfit" / "stack-LRG.fits")
    assert spectra.flux.shape == (1, 11217)
    assert spectra.has_ivar
