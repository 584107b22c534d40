"""Predictions and embeddings of any number of spectra: streamed from the files, in parallel, resumable."""

from specjax.pipeline.embed import embed_survey
from specjax.pipeline.predict import predict_survey

__all__ = ["embed_survey", "predict_survey"]
