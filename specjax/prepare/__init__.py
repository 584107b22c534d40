"""From a survey's raw files, tens of thousands of them, to one file on the model grids: `specjax prepare`."""

from specjax.prepare.plan import Options
from specjax.prepare.run import Summary, prepare_spectra

__all__ = ["Options", "Summary", "prepare_spectra"]
