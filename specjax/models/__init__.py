from specjax.models.label_head import LabelHead
from specjax.models.layers import LoRADense
from specjax.models.projection import LamostProjection, XPProjection
from specjax.models.specclip import SpecCLIP
from specjax.models.specformer import SpecFormer
from specjax.models.tokens import detokenise, standardise, tokenise
from specjax.models.xp_autoencoder import XPAutoencoder, xp_flux, xp_vector

__all__ = [
    "LabelHead",
    "LamostProjection",
    "LoRADense",
    "SpecCLIP",
    "SpecFormer",
    "XPAutoencoder",
    "XPProjection",
    "detokenise",
    "standardise",
    "tokenise",
    "xp_flux",
    "xp_vector",
]
