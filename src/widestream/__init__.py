"""Build, train, compare and understand transformer residual streams."""

from widestream.version import __version__

__all__ = ["__version__"]
