"""The version of this package, and a fingerprint of the code in it that computes."""

import functools
import hashlib
from pathlib import Path

__version__ = "0.1.0"

_ROOMS = ("recipe", "data", "kernels", "blocks", "streams", "model", "train")
_FILES = ("machine.py",)
"""What decides the numbers of a run: from the recipe and the tokens to the updated weights and the evaluations."""


@functools.cache
def code_fingerprint(*own: Path) -> str:
    """Twelve digits of a SHA-256 over the sources that decide the numbers of a run: equal where these are.

    Args:
        own: files beside those of this package, such as that of a stream of one's own.
    """
    package = Path(__file__).parent
    sources = [path for room in _ROOMS for path in (package / room).rglob("*") if path.suffix in (".py", ".cpp")]
    named = {str(path.relative_to(package)): path for path in [*sources, *(package / name for name in _FILES)]}
    digest = hashlib.sha256()
    for name, path in [*sorted(named.items()), *((path.name, path) for path in own)]:
        digest.update(f"{name}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:12]
