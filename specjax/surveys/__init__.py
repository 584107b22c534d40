"""Readers of survey files: each gives `Spectra`. The only place that knows file layouts."""
