"""Catalogues of stellar labels, and their match to spectra."""
