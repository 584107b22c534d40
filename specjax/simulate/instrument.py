"""Instruments to simulate: presets, and descriptions of others in TOML files."""

import dataclasses
import math
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from specjax.errors import ConfigError
from specjax.simulate import grism
from specjax.typing import FloatArray

_MAX_PIXELS = 100_000
_LIMITS = {"snr": (1e-6, 1e6), "ivar": (1e-12, 1e12)}  # variances are computed in float32


@dataclass(frozen=True, kw_only=True)
class Instrument:
    """What turns the spectra of stars into observed ones. Sizes of errors may be 0.

    Exactly one each of `step` and `log_step`, `fwhm` and `resolving_power`, `snr` and `ivar` is given.
    Fluxes are in units of the mean flux of the star over the simulated pixels.

    Attributes:
        name: of the survey.
        wavelength: first and last pixel, vacuum Angstrom; only pixels that the emulator covers are simulated.
        step: width of the pixels, Angstrom.
        log_step: width of the pixels in log10 of the wavelength.
        fwhm: FWHM of the line-spread function in Angstrom, a Gaussian. Pixels broaden lines further.
        resolving_power: wavelength over FWHM, if that is constant.
        snr: range of the S/N per pixel at the mean flux, log-uniform over the spectra.
        ivar: range of the inverse variance, likewise; every pixel of a spectrum has the same.
        photon_noise: share of the star's photons in the variance at the mean flux; their variance is
            proportional to the flux. The rest (sky, read-out) is the same in all pixels.
        velocity_error: standard deviation of the errors of reported velocities, km/s.
        rest_frame: whether the reported velocities have been removed from the wavelengths; their errors then
            remain in the spectra.
        wavelength_offset: error of all wavelengths, Angstrom: the wavelength given minus the true one.
        ripple: standard deviation of relative flux calibration errors with periods in `ripple_period`, which
            are different in every spectrum.
        common_ripple: the same for errors that all spectra of a survey share.
        ripple_period: shortest and longest period, Angstrom.
        continuum_error: standard deviation of relative errors on larger scales, cubic in wavelength.
        scattered_light: largest constant added to a spectrum; uniform over the spectra.
        missing_probability: probability that a stretch of the spectrum is missing.
        missing_width: range of its width in Angstrom, log-uniform.

    Raises:
        ConfigError: a value that is not possible.
    """

    name: str = "custom"
    wavelength: tuple[float, float] = (3700.0, 5700.0)
    step: float | None = None
    log_step: float | None = None
    fwhm: float | None = None
    resolving_power: float | None = None
    snr: tuple[float, float] | None = None
    ivar: tuple[float, float] | None = None
    photon_noise: float = 0.8
    velocity_error: float = 0.0
    rest_frame: bool = False
    wavelength_offset: float = 0.0
    ripple: float = 0.0
    common_ripple: float = 0.0
    ripple_period: tuple[float, float] = (60.0, 400.0)
    continuum_error: float = 0.0
    scattered_light: float = 0.0
    missing_probability: float = 0.0
    missing_width: tuple[float, float] = (10.0, 100.0)

    def __post_init__(self) -> None:
        for one, other in (("step", "log_step"), ("fwhm", "resolving_power"), ("snr", "ivar")):
            if (getattr(self, one) is None) == (getattr(self, other) is None):
                raise ConfigError(f"an instrument needs either {one} or {other}")
        for name in ("step", "log_step", "fwhm", "resolving_power"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ConfigError(f"{name} must be positive, not {value:g}")
        for name in ("wavelength", "snr", "ivar", "ripple_period", "missing_width"):
            bounds = getattr(self, name)
            if bounds is not None and not 0 < bounds[0] <= bounds[1] < math.inf:
                raise ConfigError(f"{name} must be a range of positive numbers, not {list(bounds)}")
        for name, (low, high) in _LIMITS.items():
            bounds = getattr(self, name)
            if bounds is not None and not low <= bounds[0] <= bounds[1] <= high:
                raise ConfigError(f"{name} must be from {low:g} to {high:g}, not {list(bounds)}")
        for name in ("velocity_error", "ripple", "common_ripple", "continuum_error", "scattered_light"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"{name} must not be negative, not {getattr(self, name):g}")
        for name in ("photon_noise", "missing_probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} must be from 0 to 1, not {getattr(self, name):g}")
        if not abs(self.wavelength_offset) < math.inf:
            raise ConfigError(f"wavelength_offset must be finite, not {self.wavelength_offset:g}")
        if not 10 <= self._steps < _MAX_PIXELS:
            raise ConfigError(f"an instrument has 10 to {_MAX_PIXELS} pixels, not {self._steps + 1:.0f}")

    @classmethod
    def get(cls, name: str | Path) -> "Instrument":
        """Return the preset of this name, or read a TOML file.

        Raises:
            ConfigError: neither exists, or the file is not a valid instrument.

        Examples:
            >>> Instrument.get("grism").fwhm
            24.0
        """
        if str(name) in PRESETS:
            return PRESETS[str(name)]
        path = Path(name).expanduser()
        if not path.is_file():
            known = ", ".join(PRESETS)
            raise ConfigError(f"there is no instrument {str(name)!r}: it is {known} or a .toml file")
        return cls.read(path)

    @classmethod
    def read(cls, path: Path) -> "Instrument":
        """Read the fields from a TOML file; the optional `preset` names the instrument to start from.

        A field replaces its alternative in the preset, such as fwhm the resolving_power. Without `name`, the
        instrument is named after the file.

        Raises:
            ConfigError: the file is not TOML, or has unknown or impossible fields.
        """
        try:
            values = tomllib.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:  # also of integers with thousands of digits
            raise ConfigError(f"{path} is not a TOML file: {error}") from None
        try:
            preset = values.pop("preset", None)
            if preset is not None and not (isinstance(preset, str) and preset in PRESETS):
                raise ConfigError(f"there is no preset {preset!r}: presets are {', '.join(PRESETS)}")
            given = {name: _value(name, value) for name, value in values.items()}
            start = {} if preset is None else dataclasses.asdict(PRESETS[preset])
            start |= {_ALTERNATIVES[name]: None for name in given if name in _ALTERNATIVES}
            return cls(**{**start, "name": path.stem, **given})
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None

    def with_snr(self, low: float, high: float) -> "Instrument":
        """Return the instrument with another range of S/N; noise given as `ivar` stays flat."""
        photon_noise = self.photon_noise if self.snr else 0.0
        return dataclasses.replace(self, snr=(low, high), ivar=None, photon_noise=photon_noise)

    @property
    def snr_range(self) -> tuple[float, float]:
        """Range of the S/N per pixel at the mean flux."""
        if self.snr is not None:
            return self.snr
        assert self.ivar is not None
        return math.sqrt(self.ivar[0]), math.sqrt(self.ivar[1])

    @property
    def _steps(self) -> float:
        first, last = self.wavelength
        if self.step is not None:
            return (last - first) / self.step
        return math.log10(last / first) / _given(self.log_step)

    def pixels(self) -> FloatArray:
        """Return the wavelengths of all pixels, also those that cannot be simulated, vacuum Angstrom."""
        number = np.arange(math.floor(self._steps + 1e-6) + 1)
        first = self.wavelength[0]
        if self.step is not None:
            return np.asarray(first + self.step * number)
        return np.asarray(np.power(10.0, math.log10(first) + _given(self.log_step) * number))

    def pixel_width(self, wavelength: FloatArray) -> FloatArray:
        """Return the width of a pixel in Angstrom at any wavelengths."""
        if self.step is not None:
            return np.full(wavelength.shape, self.step)
        return np.asarray(2 * math.sinh(0.5 * _given(self.log_step) * math.log(10.0)) * wavelength)

    def line_width(self, wavelength: FloatArray) -> FloatArray:
        """Return the FWHM of the line-spread function in Angstrom at any wavelengths."""
        if self.fwhm is not None:
            return np.full(wavelength.shape, self.fwhm)
        return wavelength / _given(self.resolving_power)


def _given(value: float | None) -> float:
    """Return a field whose alternative is not given."""
    assert value is not None
    return value


_ALTERNATIVES = {
    a: b
    for pair in (("step", "log_step"), ("fwhm", "resolving_power"), ("snr", "ivar"))
    for a, b in (pair, pair[::-1])
}
_PAIRS = ("wavelength", "snr", "ivar", "ripple_period", "missing_width")


def _value(name: str, value: Any) -> Any:
    """Check the type of a field read from a file."""
    known = [field.name for field in dataclasses.fields(Instrument)]
    if name not in known:
        raise ConfigError(f"an instrument has no {name!r}: its fields are preset, {', '.join(known)}")
    if name == "name" or name == "rest_frame":
        if not isinstance(value, str if name == "name" else bool):
            raise ConfigError(f"{name} must be {'a text' if name == 'name' else 'true or false'}")
        return value
    numbers = value if isinstance(value, list) and name in _PAIRS else [value]
    if any(isinstance(number, bool) or not isinstance(number, int | float) for number in numbers):
        raise ConfigError(f"{name} must be {'two numbers' if name in _PAIRS else 'a number'}, not {value!r}")
    if len(numbers) not in (1, 2):
        raise ConfigError(f"{name} must be two numbers, not {len(numbers)}")
    try:
        first, last = float(numbers[0]), float(numbers[-1])
    except OverflowError:
        raise ConfigError(f"{name} is too large") from None
    return (first, last) if name in _PAIRS else first


PRESETS = {
    "lamost": Instrument(
        name="lamost",
        wavelength=(10**3.5682, 10**3.9588),
        log_step=1e-4,
        resolving_power=1800.0,
        snr=(20.0, 200.0),
        velocity_error=5.0,
        ripple=0.005,
        common_ripple=0.005,
        continuum_error=0.1,
        scattered_light=0.02,
        missing_probability=0.02,
    ),
    "desi": Instrument(
        name="desi",
        wavelength=(3600.0, 9824.0),
        step=0.8,
        fwhm=1.8,
        snr=(10.0, 100.0),
        velocity_error=2.0,
        ripple=0.003,
        common_ripple=0.003,
        continuum_error=0.02,
        scattered_light=0.01,
        missing_probability=0.01,
    ),
    "boss": Instrument(
        name="boss",
        wavelength=(10**3.5525, 10**4.0165),
        log_step=1e-4,
        fwhm=2.5,
        snr=(10.0, 80.0),
        velocity_error=5.0,
        ripple=0.005,
        common_ripple=0.005,
        continuum_error=0.05,
        scattered_light=0.01,
        missing_probability=0.02,
    ),
    "grism": Instrument(
        name="grism",
        wavelength=(float(grism.WAVELENGTH[0]), float(grism.WAVELENGTH[-1])),
        log_step=1e-4,
        fwhm=grism.FWHM,
        snr=(grism.SNR, grism.SNR),
        photon_noise=0.2,
        velocity_error=30.0,
        ripple=0.005,
        common_ripple=0.005,
        continuum_error=0.05,
        scattered_light=0.05,
        missing_probability=0.02,
    ),
}
"""Sampling and resolution are those of the surveys; the sizes of the errors are plausible round numbers."""
