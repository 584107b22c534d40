"""A trained model: its parameters, its compiled inference, and its out-of-domain flags."""

from specjax.foundation.inputs import SURVEYS, ModelInput, SpectraLike
from specjax.foundation.model import Foundation, load
from specjax.foundation.networks import BackboneFeatures, DtypeChoice

__all__ = ["SURVEYS", "BackboneFeatures", "DtypeChoice", "Foundation", "ModelInput", "SpectraLike", "load"]
