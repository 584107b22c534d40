"""The exceptions that a user can cause; the command line prints each as one line and exits with status 1."""


class SpecjaxError(Exception):
    """Base of every error that specjax raises for a user's input, file or option."""


class ConfigError(SpecjaxError):
    """An option, preset or configuration that cannot be used."""


class DataError(SpecjaxError):
    """Spectra or labels that cannot be used as they are."""


class ModelError(SpecjaxError):
    """A model folder or adapter that is missing, damaged or does not fit."""


class DownloadError(SpecjaxError):
    """A file that could not be fetched, or that is not the one expected."""
