"""Simulated observations: labels -> spectrum -> instrument, and observed spectra degraded to another one.

- ``emulate(teff=, logg=, fe_h=, ...)``: spectra of stars with given labels, see `specjax.simulate.emulator`.

The public name is imported on first use, as the emulator needs JAX and what degrades spectra does not.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from specjax.simulate.emulator import emulate

__all__ = ["emulate"]


def __getattr__(name: str) -> Any:
    """Import a public name from its module on first use (PEP 562)."""
    if name != "emulate":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from specjax.simulate import emulator

    return emulator.emulate


def __dir__() -> list[str]:
    """List the public names, whether or not they have been imported."""
    return sorted(__all__)
