"""Files of tensors: one with all of them whole, or one a process, each with its rows.

    model.safetensors                       whole
    model-00001-of-00004.safetensors, ...   in parts: of every tensor some rows, along its first dimension

A part's header says which rows, as torch.distributed.checkpoint writes it (`DCP_SHARDING_INFO`), so that its
`HuggingFaceStorageReader` reads them too. Nothing here is a pickle, and nothing that is read is code.
"""

import json
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from widestream.errors import UserError

SHARDING = "DCP_SHARDING_INFO"
PART = re.compile(r"(\w+)-(\d{5})-of-(\d{5})\.safetensors")

DTYPES = {torch.float64: "F64", torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
"""What safetensors calls the types that weights and moments have."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows of a tensor that one process holds."""

    values: Tensor
    """Themselves."""
    first: int = 0
    """Number of the first of them in the tensor."""


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor in files that are open."""

    name: str
    """What it is called there."""
    shape: list[int]
    """Of the whole."""
    dtype: str
    """As safetensors calls it."""
    pieces: list[tuple[int, int, Any]]
    """First row, end, and the open file that has them, in order; of a tensor without dimensions one."""

    def rows(self, first: int, end: int) -> Tensor:
        """Rows [first, end)."""
        found = [
            file.get_slice(self.name)[max(first - start, 0) : min(end, stop) - start]
            for start, stop, file in self.pieces
            if start < end and first < stop
        ]
        return found[0] if len(found) == 1 else torch.cat(found)

    def whole(self) -> Tensor:
        """All of it."""
        if len(self.pieces) == 1:
            return self.pieces[0][2].get_tensor(self.name)
        return self.rows(0, self.shape[0])


class Put:
    """Copies what files hold into tensors; here all of it, and where a process holds parts, those."""

    def shape(self, name: str, tensor: Tensor) -> list[int]:
        """Shape of the whole of which `tensor` is there."""
        return list(tensor.shape)

    def put(self, tensor: Tensor, stored: StoredTensor) -> None:
        """Copy it."""
        tensor.copy_(stored.whole())


PUT_WHOLE = Put()


def write_whole(folder: Path, kind: str, tensors: Mapping[str, Tensor]) -> Path:
    """Write a file of whole tensors.

    Args:
        folder: it is written into this.
        kind: `model` or `optimizer`.
        tensors: by name.
    """
    path = folder / whole_name(kind)
    save_file(dict(tensors), path, metadata={"format": "pt"})
    return path


def write_part(folder: Path, kind: str, part: int, parts: int, tensors: Mapping[str, Piece]) -> Path:
    """Write one part's file.

    Args:
        folder: it is written into this.
        kind: `model` or `optimizer`.
        part: its number, from 0.
        parts: how many there are.
        tensors: pieces by name; a tensor of which this part has none is left out.
    """
    path = folder / f"{kind}-{part + 1:05d}-of-{parts:05d}.safetensors"
    offsets = {
        name: {"saved_offsets": [piece.first, *[0] * (piece.values.ndim - 1)][: piece.values.ndim]}
        for name, piece in tensors.items()
    }
    metadata = {"format": "pt", "DCP_VERSION": "1.0", SHARDING: json.dumps(offsets)}
    save_file({name: piece.values for name, piece in tensors.items()}, path, metadata=metadata)
    return path


def whole_name(kind: str) -> str:
    """Of the file of all tensors of a kind."""
    return f"{kind}.safetensors"


def files_of(kind: str, names: list[str]) -> list[str]:
    """Those of these names that hold tensors of a kind: the whole file, or all parts; none where one is missing."""
    if whole_name(kind) in names:
        return [whole_name(kind)]
    found = {name: match for name in names if (match := PART.fullmatch(name)) and match[1] == kind}
    parts = {int(match[3]) for match in found.values()}
    numbers = sorted(int(match[2]) for match in found.values())
    return sorted(found) if len(parts) == 1 and numbers == [*range(1, parts.pop() + 1)] else []


def copy_into(path: Path, files: list[Path], tensors: Mapping[str, Tensor], put: Put) -> None:
    """Copy files' tensors into `tensors`, whose names, shapes and types must be the same.

    Args:
        path: what the files are called in messages.
        files: a whole file, or all parts.
        tensors: take the values.
        put: copies them.

    Raises:
        UserError: a file is missing or damaged, or they hold other tensors; names the first difference.
    """
    with _opened(path, files) as there:
        for name in sorted(there.keys() | tensors.keys()):
            if name not in there:
                raise UserError(f"{path} is of another model: it lacks {name}.")
            if name not in tensors:
                raise UserError(f"{path} is of another model: it has {name}, which this one lacks.")
            found, wanted = there[name], put.shape(name, tensors[name])
            if found.shape != wanted:
                raise UserError(f"{path} is of another model: {name} has shape {found.shape} there and {wanted} here.")
            if found.dtype != (kind := DTYPES.get(tensors[name].dtype)):
                raise UserError(
                    f"{path} holds numbers of another kind: {name} is {found.dtype} there and {kind} here; "
                    "convert the file, or use another one."
                )
        for name, tensor in tensors.items():
            put.put(tensor, there[name])


@contextmanager
def _opened(path: Path, files: list[Path]) -> Iterator[dict[str, StoredTensor]]:
    """What files hold."""
    try:
        with ExitStack() as stack:
            yield _gather(path, [stack.enter_context(safe_open(file, framework="pt")) for file in files])
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; give a checkpoint's folder or a .safetensors file.") from None
    except SafetensorError as error:
        raise UserError(f"{path} is no readable safetensors file ({error}); it is damaged, use another one.") from None


def _gather(path: Path, files: list[Any]) -> dict[str, StoredTensor]:
    """Tensors by name, each with all its pieces in order.

    Raises:
        UserError: pieces do not make up whole tensors.
    """
    pieces: dict[str, list[tuple[int, Any]]] = defaultdict(list)
    for file in files:
        offsets = _offsets(path, file)
        for name in file.keys():  # noqa: SIM118 (no dictionary)
            pieces[name].append((0 if offsets is None else offsets.get(name, -1), file))
    return {name: _joined(path, name, sorted(found, key=lambda one: one[0])) for name, found in pieces.items()}


def _joined(path: Path, name: str, pieces: list[tuple[int, Any]]) -> StoredTensor:
    slices = [file.get_slice(name) for _, file in pieces]
    shapes, dtypes = [list(one.get_shape()) for one in slices], {one.get_dtype() for one in slices}
    ends, expected = [], 0
    for (first, _), shape in zip(pieces, shapes, strict=True):
        if first != expected or shape[1:] != shapes[0][1:] or len(dtypes) > 1 or (not shape and len(pieces) > 1):
            raise UserError(f"{path} holds parts of {name} that make up no whole; it is damaged, use another one.")
        expected += shape[0] if shape else 1
        ends.append(expected)
    whole = [expected, *shapes[0][1:]] if shapes[0] else []
    spans = [(first, end, file) for (first, file), end in zip(pieces, ends, strict=True)]
    return StoredTensor(name, whole, dtypes.pop(), spans)


def _offsets(path: Path, file: Any) -> dict[str, int] | None:
    """First rows by name as a part's header says it; None where there is nothing of it."""
    text = (file.metadata() or {}).get(SHARDING)
    if text is None:
        return None
    try:
        said = {name: entry["saved_offsets"] for name, entry in json.loads(text).items()}
        assert all(type(number) is int for numbers in said.values() for number in numbers)
        assert not any(any(numbers[1:]) for numbers in said.values())
        return {name: numbers[0] if numbers else 0 for name, numbers in said.items()}
    except (ValueError, KeyError, TypeError, AttributeError, AssertionError, RecursionError):
        raise UserError(f"{path} has a part that does not say which rows it holds; it is damaged.") from None
