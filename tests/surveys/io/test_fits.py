"""Damage to FITS files that carry a CRC or checksums."""

import gzip

import numpy as np
import pytest
from astropy.io import fits

from specjax.errors import DataError
from specjax.surveys import image_stack, lamost, read
from specjax.surveys.io import fits as io_fits
from tests.damage import flip, outcomes, same_spectra, some_bits


def stack(path, **options):
    """Write noisy spectra, with CHECKSUM and DATASUM on request."""
    rng = np.random.default_rng(0)
    images = {"FLUX": rng.random((2, 300)), "IVAR": rng.random((2, 300)), "WAVE": 4000.0 + np.arange(300)}
    hdus = [fits.ImageHDU(data.astype(np.float32), name=name) for name, data in images.items()]
    fits.HDUList([fits.PrimaryHDU(), *hdus]).writeto(path, **options)
    return path


def packed(path):
    target = path.with_name(path.name + ".gz")
    target.write_bytes(gzip.compress(path.read_bytes(), mtime=0))
    return target


def check(path, read_file, count):
    """Flip bits and return how many of them were refused."""
    expected = read_file(path)
    bits = some_bits(path.read_bytes(), count)
    counts, silent = outcomes(path, read_file, lambda found: same_spectra(found, expected), bits)
    assert silent == []
    return counts["refused"]


def test_no_flipped_bit_of_a_gzipped_file_changes_spectra_without_a_word(tmp_path):
    refused = check(packed(stack(tmp_path / "stack.fits")), image_stack.read, 120)
    assert refused > 100  # all but those of the date and the name in gzip's header


def test_no_flipped_bit_of_a_file_with_checksums_changes_spectra_without_a_word(tmp_path):
    assert check(stack(tmp_path / "stack.fits", checksum=True), image_stack.read, 120) > 60


def test_no_flipped_bit_of_a_real_lamost_file_changes_spectra_without_a_word(real_data, tmp_path):
    path = tmp_path / "spec.fits.gz"
    path.write_bytes(next((real_data / "lamost" / "dr8").glob("*.fits.gz")).read_bytes())
    check(path, lamost.read, 40)


@pytest.mark.parametrize("in_memory", [100, 1 << 20])
def test_a_wrong_crc_is_refused_however_large_the_file(tmp_path, monkeypatch, in_memory):
    monkeypatch.setattr(io_fits, "_IN_MEMORY", in_memory)
    path = packed(stack(tmp_path / "stack.fits"))
    expected, data = read(path), path.read_bytes()
    assert len(expected) == 2
    path.write_bytes(flip(data, 8 * (len(data) - 8)))
    with pytest.raises(DataError, match=r"stack\.fits\.gz is damaged: CRC check failed"):
        read(path)


def test_wrong_checksums_are_refused_with_their_hdu(tmp_path):
    path = stack(tmp_path / "stack.fits", checksum=True)
    with fits.open(path) as hdus:
        start = hdus["IVAR"].fileinfo()["datLoc"]
    data = path.read_bytes()
    path.write_bytes(flip(data, 8 * start + 80))
    with pytest.raises(DataError, match=r"stack\.fits is damaged: .*sum verification failed .*IVAR"):
        read(path)
    path.write_bytes(data.replace(b"IVAR    ", b"IVAS    "))
    with pytest.raises(DataError, match=r"stack\.fits is damaged: Checksum verification failed .*IVAS"):
        read(path)


def test_bytes_after_the_last_hdu_are_no_damage(tmp_path):
    path = stack(tmp_path / "stack.fits", checksum=True)
    expected = read(path)
    path.write_bytes(path.read_bytes() + b"further bytes" * 300)
    with io_fits.open_fits(path, "a stack of spectra") as hdus:
        assert [hdu.name for hdu in hdus] == ["PRIMARY", "FLUX", "IVAR", "WAVE"]
    assert same_spectra(read(path), expected)
