"""Predictions, embeddings and translations of any number of spectra: streamed, in parallel, resumable."""

from specjax.pipeline.embed import embed_survey
from specjax.pipeline.predict import predict_survey
from specjax.pipeline.similar import find_similar
from specjax.pipeline.translate import translate_survey

__all__ = ["embed_survey", "find_similar", "predict_survey", "translate_survey"]
