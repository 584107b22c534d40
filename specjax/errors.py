"""Exceptions that user input can cause; the command line prints each as one line and exits with status 1."""


class SpecjaxError(Exception):
    """Base class of the errors that specjax raises for invalid input, files or options."""


def one_line(text: str) -> str:
    r"""Return a text for the terminal: one line, with control characters of names in files as escapes.

    >>> one_line("no key \x1b[2J in\n  the file")
    'no key \\x1b[2J in the file'
    """
    line = " ".join(text.split())
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)


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
