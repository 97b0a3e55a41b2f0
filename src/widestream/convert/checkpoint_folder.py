"""A folder of transformers as it lies on the disk: config.json and safetensors, in one file or in shards."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from widestream.errors import UserError, shown
from widestream.files import read_bounded

CONFIG = "config.json"
WHOLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
"""How the names of files end that run code when they are opened; they never are."""
READ = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""Types of weights that are read, as safetensors calls them."""


class Tensors(Protocol):
    """Named tensors that can be looked at before they are read."""

    def names(self) -> Sequence[str]:
        """All of them."""
        ...

    def shape(self, name: str) -> list[int]:
        """Of a tensor."""
        ...

    def get(self, name: str) -> Tensor:
        """A tensor, in float32.

        Raises:
            UserError: it cannot be read, or holds what is not a finite number.
        """
        ...


@dataclass(frozen=True)
class _Place:
    file: Any
    path: Path
    name: str


class FolderTensors:
    """The tensors of a folder; `open_tensors` makes one.

    Attributes:
        files: the files, in order.
        kinds: types of the weights.
    """

    def __init__(self, places: Mapping[str, _Place]):
        self._places = places
        self.files = sorted({place.path for place in places.values()})
        self.kinds: set[str] = set()
        for name, place in places.items():
            kind = place.file.get_slice(place.name).get_dtype()
            if kind not in READ and not kind.startswith(("U", "I", "BOOL")):
                raise UserError(f"{place.path} holds {shown(name)} as {kind}; weights are read as {', '.join(READ)}.")
            self.kinds.add(kind)

    def names(self) -> Sequence[str]:
        """See `Tensors`."""
        return list(self._places)

    def shape(self, name: str) -> list[int]:
        """See `Tensors`."""
        place = self._places[name]
        return list(place.file.get_slice(place.name).get_shape())

    def get(self, name: str) -> Tensor:
        """See `Tensors`."""
        place = self._places[name]
        try:
            tensor = place.file.get_tensor(place.name)
        except SafetensorError as error:
            raise _damaged(place.path, error) from None
        if not tensor.is_floating_point():
            raise UserError(
                f"{place.path} holds {shown(name)} as {tensor.dtype}; weights are read as {', '.join(READ)}."
            )
        return finite(tensor.float(), name, place.path)


def finite(tensor: Tensor, name: str, path: Path) -> Tensor:
    """The same tensor.

    Raises:
        UserError: it holds what is not a finite number.
    """
    if not math.isfinite(tensor.sum().item()) and not tensor.isfinite().all():
        raise UserError(
            f"{path} holds numbers that are not finite in {shown(name)}; it is damaged, or its training diverged."
        )
    return tensor


def read_model_config(folder: Path) -> dict[str, Any]:
    """The contents of config.json.

    Raises:
        UserError: the folder is none of transformers', or the file is damaged.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise UserError(f"{folder} holds no {CONFIG}; give a folder that transformers saved, or a .gguf file.")
    try:
        values = json.loads(read_bounded(path))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as JSON ({error}).") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} is no mapping of settings.")
    return values


@contextmanager
def open_tensors(folder: Path, prefix: str) -> Iterator[FolderTensors]:
    """The tensors of a folder, of which the headers are read and checked.

    Args:
        folder: with model.safetensors, or shards and their index.
        prefix: what stands in front of all names but the head's; where it was left out, it is put there.

    Raises:
        UserError: there are none, a shard is missing or damaged, or only pickles, which are not opened.
    """
    listed = None if (folder / WHOLE).is_file() else _index(folder)
    files = [WHOLE] if listed is None else sorted({*listed.values()})
    if missing := [name for name in files if not (folder / name).is_file()]:
        raise UserError(
            f"{folder} lacks {shown(missing[0])}, one of its {len(files)} shards ({len(missing)} are missing); copy "
            "the whole folder again."
        )
    with ExitStack() as stack:
        found: dict[str, _Place] = {}
        for name in files:
            path = folder / name
            try:
                file = stack.enter_context(safe_open(path, framework="pt"))
            except (SafetensorError, OSError) as error:
                raise _damaged(path, error) from None
            found |= {key: _Place(file, path, key) for key in file.keys() if listed is None or listed.get(key) == name}  # noqa: SIM118
        if listed is not None and (absent := [key for key in listed if key not in found]):
            raise UserError(
                f"{folder / shown(listed[absent[0]])} lacks {shown(absent[0])}, which {INDEX} says is in it."
            )
        if not found:
            raise UserError(f"{folder / WHOLE} holds no tensors; copy it again, or save the model again.")
        if not any(name.startswith(prefix) for name in found):
            found = {name if name.startswith("lm_head.") else prefix + name: place for name, place in found.items()}
        yield FolderTensors(found)


def _index(folder: Path) -> dict[str, str]:
    """Which shard holds which tensor."""
    path = folder / INDEX
    if not path.is_file():
        raise _nothing(folder)
    try:
        listed = json.loads(read_bounded(path))["weight_map"]
        whole = bool(listed) and all(
            isinstance(file, str) and Path(file).name == file and file.endswith(".safetensors")
            for file in listed.values()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        whole, listed = False, {}
    if not whole:
        raise UserError(f"{path} is no index of shards; copy the whole folder again.")
    return listed


def _nothing(folder: Path) -> UserError:
    names = sorted(path.name for path in folder.iterdir())
    if pickles := [name for name in names if name.endswith(PICKLES)]:
        return UserError(
            f"{folder} has its weights in {shown(pickles[0])} only, a format that runs code when it is opened; save "
            f"the model again with safetensors (save_pretrained does)."
        )
    others = [name for name in names if name.endswith((".safetensors", ".gguf"))]
    hint = f"it has {shown(others[0])}, and what is read is" if others else "give a folder with"
    return UserError(f"{folder} holds no {WHOLE} and no {INDEX}; {hint} one of these, or a .gguf file by its name.")


def _damaged(path: Path, error: Exception) -> UserError:
    return UserError(f"{path} is no whole safetensors file ({error}); copy it again.")
