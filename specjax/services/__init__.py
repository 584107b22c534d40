"""Spectra from services on the network: found, fetched in pages, checked, and stored as files to be read."""
