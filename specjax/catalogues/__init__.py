"""Catalogues of stellar labels, and how their rows are matched to spectra."""
