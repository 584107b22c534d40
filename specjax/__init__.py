"""Adapt a pre-trained stellar foundation model to a new survey with LoRA, with error bars over seeds.

The public names are imported on first use, so that ``import specjax`` is fast:

- ``load(folder)``: load a `specjax.foundation.Foundation`; ``"mini"`` is the model that ships with specjax.
- ``qtable(columns)``: predictions as an astropy `QTable`, with units and descriptions.
- ``read(path, survey=None)``: read `Spectra` from the files of a survey.
- ``Spectra``: wavelength, flux, inverse variance, mask and labels of a set of stars.
- ``SpecjaxError``: the base class of all errors that user input can cause.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from specjax._version import __version__

if TYPE_CHECKING:
    from specjax.errors import SpecjaxError
    from specjax.foundation import load
    from specjax.spectra import Spectra
    from specjax.surveys import read
    from specjax.surveys.io.tables import qtable

__all__ = ["SpecjaxError", "Spectra", "__version__", "load", "qtable", "read"]

_HOMES = {
    "SpecjaxError": "specjax.errors",
    "Spectra": "specjax.spectra",
    "load": "specjax.foundation",
    "qtable": "specjax.surveys.io.tables",
    "read": "specjax.surveys",
}


def __getattr__(name: str) -> Any:
    """Import a public name from its module on first use (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    """List the public names, whether or not they have been imported."""
    return sorted(__all__)
