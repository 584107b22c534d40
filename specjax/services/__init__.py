"""Downloads of spectra and models from services on the network."""
