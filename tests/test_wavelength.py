import numpy as np
import pytest

from specjax.wavelength import GAIA_XP_WAVELENGTH, LAMOST_WAVELENGTH, air_to_vacuum


def test_model_grids_are_as_published():
    assert LAMOST_WAVELENGTH.shape == (1462,)
    np.testing.assert_allclose(np.log10(LAMOST_WAVELENGTH[[0, -1]]), [3.602, 3.7481], rtol=1e-15)
    np.testing.assert_array_equal(GAIA_XP_WAVELENGTH, 10.0 * np.arange(336, 1021, 2))


@pytest.mark.parametrize(("air", "vacuum"), [(5889.950954, 5891.583264), (5895.924237, 5897.558147)])
def test_air_to_vacuum_reproduces_the_sodium_lines_of_nist(air, vacuum):
    # 1e-4 A is 5 m/s, the spread among published formulae for the refractive index of air.
    np.testing.assert_allclose(air_to_vacuum([air]), [vacuum], rtol=0, atol=1e-4)


def test_air_to_vacuum_agrees_with_ciddor_over_the_optical():
    vacuum = np.linspace(3000.0, 10500.0, 50)
    wavenumber2 = (1e4 / vacuum) ** 2
    index = 1 + 1e-8 * (5792105 / (238.0185 - wavenumber2) + 167917 / (57.362 - wavenumber2))
    # Ciddor (1996) assumes 450 ppm of CO2, wcslib 300 ppm: a difference of 2e-8.
    np.testing.assert_allclose(air_to_vacuum(vacuum / index), vacuum, rtol=2.5e-8)
