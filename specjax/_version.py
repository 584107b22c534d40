"""The version, on its own so that a build reads it without importing the package's dependencies."""

__version__ = "0.1.0"
