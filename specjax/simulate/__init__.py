"""Observations by an instrument that does not exist, from spectra that do."""
