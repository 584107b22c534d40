"""Preparation of tens of thousands of raw survey files as one file on the model grids."""

from specjax.prepare.plan import Options
from specjax.prepare.run import PrepareResult, prepare_spectra

__all__ = ["Options", "PrepareResult", "prepare_spectra"]
