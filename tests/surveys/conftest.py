"""Small folders of files with the layouts of the stellar libraries, and the folder of real files."""

import gzip
import os
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

MILES_TABLE = """\
Name                  MILES   CaT   SpT            Teff   log g   [Fe/H]  Refs   Libraries
                      s????
 - - - - - - - - - - - - - - - - - - - - - - - - - - - - - - - - - - - - - - - - - - - - - --
BD+002058A             0001         sd:F            6024   4.50    -1.44   131
HD190360               0002   612   G6IV+M6 V       5440   3.89     0.25   SKC     J   I E
HD098468               0003                           --     --      --
HD044691A              022.         A3m             7950   3.95     0.35   333
HD013267               0005   197   B5Ia           13800   2.44      --    66            E
HD 025825         Cl   0006   016   G0 V            6065   4.41     0.13   2     L
NGC 7789 859(853) Cl   0007   153    GB             4544   2.34    -0.13   1     L
"""


@pytest.fixture
def miles_folder(tmp_path):
    folder = tmp_path / "miles"
    folder.mkdir()
    (folder / "paramsMILES_v9.1.txt").write_text(MILES_TABLE)
    for number in (1, 2, 3, 4, 5, 6, 7):  # 4 is not in the table
        hdu = fits.PrimaryHDU(np.full(50, float(number)))
        hdu.header.update(CRVAL1=3540.5, CDELT1=0.9, CRPIX1=1)
        hdu.writeto(folder / f"MILES_res2.50_star_m{number:04d}V.fits")
    return folder


def write_stelib(folder, star, flux, teff="-       ", logg="-       ", fe_h="-       ", first=3199.8):
    """Write one file with the unquoted card and the types of the real files."""
    hdu = fits.PrimaryHDU(np.asarray(flux, dtype=">f4"))
    hdu.header.update(CRVAL1=first, CDELT1=0.9999, CRPIX1=1.0, APNUM1="1 0", RADVEL=20.1)
    hdu.header.update(TEFF=teff, LOG_G=logg, FE_H=fe_h, TELESCOP="Jacobus Kaptein Telescope ")
    path = folder / f"STELIB_v3.2_{star}.fits"
    hdu.writeto(path)
    raw = path.read_bytes()
    assert raw.count(b"APNUM1  = '1 0     '") == 1
    path.write_bytes(raw.replace(b"APNUM1  = '1 0     '", b"APNUM1  =  1 0      "))


@pytest.fixture
def stelib_folder(tmp_path):
    folder = tmp_path / "stelib"
    folder.mkdir()
    flux = np.full(60, 1e-11)
    write_stelib(folder, "HD034411", flux, 5845, 4.13, 0.01)
    write_stelib(folder, "HD046223", np.where(np.arange(60) < 20, 0, flux), 49300, 3.95, first=3200.3)
    write_stelib(folder, "HD053929lp", flux[:55])
    return folder


@pytest.fixture
def mastar_folder(tmp_path):
    folder = tmp_path / "mastarhc_v2"
    folder.mkdir()
    for number in (0, 12):
        flux = fits.PrimaryHDU(np.full(40, 1.5))
        flux.header.update(CTYPE1="WAVE-LOG", CRPIX1=1, CRVAL1=3.5601, CDELT1=1e-4)
        ivar = fits.ImageHDU(np.where(np.arange(40) < 5, 0.0, 1e4), name="IVAR")
        plain = folder / "plain.fits"
        fits.HDUList([flux, ivar]).writeto(plain)
        (folder / f"MaStarHC_{number:02d}.fits.gz").write_bytes(gzip.compress(plain.read_bytes()))
        plain.unlink()
    return folder


@pytest.fixture
def real_data():
    """The folder of observed files, which are not part of the project."""
    root = Path(__file__).parents[2]
    folder = Path(os.environ.get("SPECJAX_REAL_DATA", root.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no observed files at {folder}: set SPECJAX_REAL_DATA to their folder")
    return folder
