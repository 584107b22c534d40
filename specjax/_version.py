"""The package version, in its own module so that a build can read it without importing dependencies."""

__version__ = "0.1.0"
