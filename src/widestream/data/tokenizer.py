"""From the name of a tokenizer, or from a prepared folder, to the tokenizer itself."""

import errno
import hashlib
from pathlib import Path

from widestream.data.file_tokenizer import FileTokenizer, parse_tokenizer, vocabulary_of
from widestream.data.gpt2 import gpt2_tokenizer
from widestream.data.manifest import TokenizerInfo, read_manifest
from widestream.data.names import shown
from widestream.data.remote import local_folder
from widestream.data.tokenizer_base import TOKENIZER_FILE, ByteTokenizer, Tokenizer
from widestream.errors import UserError
from widestream.files import read_bounded


def resolve_tokenizer(name: str, boundary: str | None = None) -> Tokenizer:
    """The tokenizer a user named.

    Args:
        name: `byte`, `gpt2`, or the path of a tokenizer.json (or of a folder that holds one).
        boundary: for a file, the token to use as boundary.

    Raises:
        UserError: no such file, not a tokenizer, or GPT-2's vocabulary cannot be found.
    """
    if name in ("byte", "gpt2") and boundary is not None:
        raise UserError(f"--boundary is for a tokenizer.json; the {name} tokenizer has its own: leave it out.")
    if name == "byte":
        return ByteTokenizer()
    if name == "gpt2":
        return gpt2_tokenizer()
    path = Path(name) / TOKENIZER_FILE if Path(name).is_dir() else Path(name)
    try:
        if path.exists() and not path.is_file():
            raise OSError(errno.EINVAL, "not a file")  # a pipe would be waited for
        content = read_bounded(path)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"Cannot read the tokenizer {shown(path)} ({reason}): give byte, gpt2, or the path of a tokenizer.json."
        ) from None
    return FileTokenizer(content, str(path), boundary=boundary)


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """The tokenizer of a prepared folder, or of one behind a URL, checked against its manifest.

    Raises:
        UserError: the folder is not prepared, or its tokenizer.json is missing or was altered.
    """
    return open_tokenizer(local_folder(folder), read_manifest(folder).tokenizer)


def open_tokenizer(folder: str | Path, info: TokenizerInfo) -> Tokenizer:
    """The tokenizer whose file lies in a folder (prepared data, or a run), checked against what is known of it.

    Raises:
        UserError: its tokenizer.json is missing or was altered.
    """
    if info.kind == "byte":
        if (info.vocab_size, info.boundary_id) != (ByteTokenizer.vocab_size, ByteTokenizer.boundary_id):
            raise UserError(
                f"{shown(folder)} says that the byte tokenizer has {info.vocab_size} ids and boundary "
                f"{info.boundary_id}, which it has not: copy the folder again, or prepare the data again."
            )
        return ByteTokenizer()
    path = Path(folder) / TOKENIZER_FILE
    content = path.read_bytes() if path.is_file() else b""
    if hashlib.sha256(content).hexdigest() != info.sha256:
        state = "was altered" if content else "is missing"
        raise UserError(f"{path} {state}: copy the tokenizer there again, or prepare the data again with --overwrite.")
    vocabulary = vocabulary_of(parse_tokenizer(content, str(path)), str(path))
    boundary = next((token for token, i in vocabulary.items() if i == info.boundary_id), None)
    if boundary is None:
        raise UserError(
            f"{shown(path)} has no token {info.boundary_id}, which is said to be its boundary: copy it again."
        )
    return FileTokenizer(content, str(path), kind=info.kind, boundary=boundary)
