"""The version, below everything."""

__version__ = "0.1.0"
