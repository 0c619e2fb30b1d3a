"""Real-time voice, video and data for the namespaces of a small cluster."""

from orama._version import __version__

__all__ = ["__version__"]
