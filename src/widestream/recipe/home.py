"""The home folder in paths of files and of the command line."""

import os


def expand_home(path: str | os.PathLike[str]) -> str:
    """The path with ~ or ~user at its beginning written out; as it is where there is no such user."""
    return os.path.expanduser(path)  # noqa: PTH111 (Path.expanduser fails where there is no such user)
