"""Intervals of predicted labels, calibrated on stars that the training has not seen. NumPy and SciPy only."""
