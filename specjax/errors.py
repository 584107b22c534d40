"""Exceptions that user input can cause; the command line prints each as one line and exits with status 1."""


class SpecjaxError(Exception):
    """Base class of the errors that specjax raises for invalid input, files or options."""


class ConfigError(SpecjaxError):
    """An invalid option, preset or configuration."""


class DataError(SpecjaxError):
    """Invalid or unsuitable spectra or labels."""


class ModelError(SpecjaxError):
    """A missing, damaged or incompatible model folder or adapter."""


class DownloadError(SpecjaxError):
    """A file that could not be downloaded or is not the expected one."""


class TrainingError(SpecjaxError):
    """Training that cannot go on, such as a loss that is not finite."""
