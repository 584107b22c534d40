"""A trained model: its parameters, what can be asked of it, and the spectra that it does not know."""

from specjax.foundation.model import SURVEYS, Foundation, load

__all__ = ["SURVEYS", "Foundation", "load"]
