from pathlib import Path

import numpy as np
import pytest
from astropy import units as u
from astropy.table import Table

from specjax.errors import DataError
from specjax.surveys import read
from specjax.surveys.io.column_units import known_unit

GRID = np.linspace(4000.0, 5600.0, 161)


@pytest.mark.parametrize(
    ("text", "unit"),
    [
        (None, None),
        ("", None),
        ("relative", None),
        ("Angstroms", u.AA),
        ("erg/s/cm2/Angstrom", u.erg / u.s / u.cm**2 / u.AA),
        ("Jy/beam", u.Jy),
        ("counts per pixel", None),
        (u.nm, u.nm),
    ],
)
def test_units_are_those_that_files_name(text, unit):
    assert known_unit(Path("a.fits"), text) == unit


@pytest.mark.parametrize(
    "text",
    [
        "mag(AB)",
        "dex(erg/(s cm2 AA))",
        "ABmag",
        "STmag",
        "MAG",
        "magnitude",
        "log(erg/s/cm2/A)",
        "fnu",
        "F_nu",
        "photons/s/cm2/A",
        "ergs/sec/cm2/Hz",
    ],
)
def test_what_is_no_flux_per_wavelength_is_refused(text, tmp_path):
    with pytest.raises(DataError, match="convert"):
        known_unit(Path("a.fits"), text)
    table = Table({"wavelength": GRID, "flux": np.ones(GRID.size)})
    table["flux"].unit = u.Unit(text, parse_strict="silent")
    table.write(tmp_path / "a.ecsv")
    with pytest.raises(DataError, match=r"a\.ecsv: "):
        read(tmp_path / "a.ecsv", wavelength_medium="vacuum")


def test_magnitudes_are_refused_by_their_name(tmp_path):
    table = Table({"wavelength": GRID, "flux": np.ones(GRID.size)})
    table["flux"].unit = "mag"
    table.write(tmp_path / "a.ecsv")
    with pytest.raises(DataError, match="flux in mag is not linear"):
        read(tmp_path / "a.ecsv", wavelength_medium="vacuum")
