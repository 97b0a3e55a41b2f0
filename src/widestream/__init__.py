"""Build, train, compare and understand transformer residual streams."""

__version__ = "0.1.0"
