"""From `Spectra` as observed to flux on a model's wavelength grid."""
