"""Readers of survey files, each returning `Spectra`; file layouts are known only here."""

from specjax.surveys.registry import SURVEYS, Survey, read, read_xp

__all__ = ["SURVEYS", "Survey", "read", "read_xp"]
