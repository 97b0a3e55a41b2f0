"""What every stream's configuration has: its kind. Each stream's own dataclass extends this one."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class StreamConfig:
    """Base of the configurations of all streams; `kind` chooses which."""

    kind: str
    """Name of a stream (`vector`, `matrix`, ...) or `module:Class` of your own."""
