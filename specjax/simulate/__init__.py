"""Simulated observations: labels -> spectrum -> instrument, and observed spectra degraded to another one.

- ``emulate(teff=, logg=, fe_h=, ...)``: spectra of stars with given labels, see `specjax.simulate.emulator`.
- ``simulate_survey(out, instrument=, n=, ...)``: a survey with known labels, see `specjax.simulate.survey`.
- ``Instrument``: what is simulated besides the stars, see `specjax.simulate.instrument`.

The public names are imported on first use, as simulations need JAX and what degrades spectra does not.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from specjax.simulate.emulator import emulate
    from specjax.simulate.instrument import Instrument
    from specjax.simulate.survey import simulate_survey

__all__ = ["Instrument", "emulate", "simulate_survey"]

_HOMES = {"Instrument": "instrument", "emulate": "emulator", "simulate_survey": "survey"}


def __getattr__(name: str) -> Any:
    """Import a public name from its module on first use (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    """List the public names, whether or not they have been imported."""
    return sorted(__all__)
