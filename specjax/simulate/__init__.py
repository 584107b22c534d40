"""Simulated observations: observed spectra degraded to another instrument."""
