import numpy as np
import pytest

from specjax.errors import ConfigError
from specjax.simulate.instrument import PRESETS, Instrument
from specjax.wavelength import LAMOST_WAVELENGTH

SMALL = {"step": 1.0, "fwhm": 3.0, "snr": (50.0, 50.0)}


@pytest.mark.parametrize("name", PRESETS)
def test_presets_have_their_names_and_cover_the_model_grid(name):
    instrument = Instrument.get(name)
    assert instrument.name == name
    pixels = instrument.pixels()
    assert pixels[0] < LAMOST_WAVELENGTH[0] < LAMOST_WAVELENGTH[-1] < pixels[-1]
    np.testing.assert_allclose(pixels[[0, -1]], instrument.wavelength, rtol=1e-9)
    np.testing.assert_allclose(
        instrument.pixel_width(pixels[1:-1]), (pixels[2:] - pixels[:-2]) / 2, rtol=1e-7
    )


def test_lamost_pixels_are_those_of_the_model():
    pixels = PRESETS["lamost"].pixels()
    np.testing.assert_allclose(pixels[338 : 338 + 1462], LAMOST_WAVELENGTH, rtol=1e-12)
    np.testing.assert_allclose(PRESETS["lamost"].line_width(np.array([5400.0])), 3.0)


def test_a_file_changes_a_preset(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('preset = "lamost"\nfwhm = 5\nivar = 100\nripple_period = [80, 200]\nrest_frame = true\n')
    mine = Instrument.get(path)
    assert (mine.name, mine.fwhm, mine.resolving_power) == ("mine", 5.0, None)
    assert (mine.snr, mine.ivar, mine.ripple_period) == (None, (100.0, 100.0), (80.0, 200.0))
    assert mine.rest_frame
    assert mine.continuum_error == PRESETS["lamost"].continuum_error
    assert mine.with_snr(10, 20).ivar is None


def test_another_snr_keeps_the_kind_of_noise():
    assert PRESETS["lamost"].with_snr(10, 20).photon_noise == PRESETS["lamost"].photon_noise
    assert Instrument(step=1.0, fwhm=3.0, ivar=(9.0, 9.0)).with_snr(10, 20).photon_noise == 0


def test_a_file_can_describe_a_whole_instrument(tmp_path):
    path = tmp_path / "new.toml"
    path.write_text('name = "new"\nwavelength = [4000, 5500]\nstep = 1.5\nfwhm = 4.0\nsnr = [20, 40]\n')
    assert Instrument.get(path) == Instrument(
        name="new", wavelength=(4000.0, 5500.0), step=1.5, fwhm=4.0, snr=(20.0, 40.0)
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fwhm =", "not a TOML file"),
        ('preset = "muse"', "no preset 'muse'"),
        ("preset = []", r"no preset \[\]"),
        ("step = 1" + "0" * 400, "step is too large"),
        ("step = 1" + "0" * 5000, "not a TOML file"),
        ("snr = " + "[" * 5000, "not a TOML file"),
        ('preset = "desi"\nsnr = [10, 2e6]', "snr must be from 1e-06 to 1e"),
        ('preset = "desi"\nivar = [1e-20, 1]', "ivar must be from 1e-12 to 1e"),
        ("colour = 1", "no 'colour'"),
        ('preset = "desi"\nfwhm = "wide"', "fwhm must be a number"),
        ('preset = "desi"\nsnr = [1, 2, 3]', "two numbers, not 3"),
        ('preset = "desi"\nname = 5', "name must be a text"),
        ('preset = "desi"\nfwhm = 2\nresolving_power = 2000', "either fwhm or resolving_power"),
        ("step = 1.0\nsnr = 50", "either fwhm or resolving_power"),
        ('preset = "desi"\nfwhm = -2', "fwhm must be positive"),
        ('preset = "desi"\nripple = nan', "ripple must not be negative"),
        ('preset = "desi"\nsnr = [50, 20]', "snr must be a range"),
        ('preset = "desi"\nphoton_noise = 2', "from 0 to 1"),
        ('preset = "desi"\nwavelength_offset = inf', "finite"),
        ('preset = "desi"\nstep = 1e-3', "10 to 100000 pixels"),
    ],
)
def test_an_error_in_a_file_names_it(tmp_path, text, message):
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        Instrument.get(path)
    assert str(path) in str(caught.value)


def test_an_unknown_name_is_refused():
    with pytest.raises(ConfigError, match=r"no instrument 'muse': it is lamost, desi, boss, grism or"):
        Instrument.get("muse")


@pytest.mark.parametrize("change", [{"log_step": 1e-4}, {"fwhm": None}, {"ivar": (1.0, 2.0)}])
def test_alternatives_exclude_each_other(change):
    with pytest.raises(ConfigError, match="either"):
        Instrument(**(SMALL | change))
