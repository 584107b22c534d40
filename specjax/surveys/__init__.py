"""Readers of survey files, each returning `Spectra`; the only code that knows the layouts of files."""

from specjax.surveys.registry import SURVEYS, Survey, read, read_xp

__all__ = ["SURVEYS", "Survey", "read", "read_xp"]
