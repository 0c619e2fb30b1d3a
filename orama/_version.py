"""The version, as a plain string: the build reads it without importing anything."""

__version__ = "0.1.0"
