"""Tensors in parts: put together again whole or by rows; damaged or hostile parts are a sentence."""

import json
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint import FileSystemReader, HuggingFaceStorageReader, load

from widestream.errors import UserError
from widestream.runs.tensor_files import (
    PUT_WHOLE,
    Piece,
    Put,
    StoredTensor,
    copy_into,
    files_of,
    write_part,
    write_whole,
)

TENSORS = {"a": torch.randn(7, 3), "b": torch.randn(2, 2, 2), "c": torch.tensor(5.0), "d": torch.randn(1)}
PARTS = 4


@pytest.fixture
def folder(tmp_path):
    """The tensors in four parts, as FSDP2 cuts them."""
    for part in range(PARTS):
        pieces = {}
        for name, tensor in TENSORS.items():
            if tensor.ndim == 0:
                if part == 0:
                    pieces[name] = Piece(tensor)
                continue
            rows = -(-len(tensor) // PARTS)
            if len(own := tensor[part * rows : (part + 1) * rows]):
                pieces[name] = Piece(own.clone(), part * rows)
        write_part(tmp_path, "model", part, PARTS, pieces)
    return tmp_path


def paths(folder):
    return [folder / name for name in files_of("model", [path.name for path in folder.iterdir()])]


def empty():
    return {name: torch.zeros_like(tensor) for name, tensor in TENSORS.items()}


def test_parts_are_what_was_cut(folder):
    found = empty()
    copy_into(folder, paths(folder), found, PUT_WHOLE)
    assert all(torch.equal(found[name], tensor) for name, tensor in TENSORS.items())


@pytest.mark.parametrize(("first", "end"), [(0, 7), (0, 1), (1, 5), (2, 4), (6, 7)])
def test_rows_of_parts(folder, first, end):
    seen = []

    class Rows(Put):
        def put(self, tensor, stored: StoredTensor):
            if stored.name == "a":
                seen.append(stored.rows(first, end))

    copy_into(folder, paths(folder), empty(), Rows())
    assert torch.equal(seen[0], TENSORS["a"][first:end])


def test_torch_reads_parts_too(folder):
    found = empty()
    load(found, storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=True)
    assert all(torch.equal(found[name], tensor) for name, tensor in TENSORS.items())


def test_whole_files_are_plain(tmp_path):
    path = write_whole(tmp_path, "model", TENSORS)
    assert load_file(path).keys() == TENSORS.keys()


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["model.safetensors", "optimizer.safetensors", "state.json"], ["model.safetensors"]),
        (["model-00002-of-00002.safetensors", "model-00001-of-00002.safetensors"],
         ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]),
        (["model-00002-of-00002.safetensors"], []),
        (["model-00001-of-00001.safetensors", "model-00002-of-00002.safetensors"], []),
        (["optimizer-00001-of-00001.safetensors"], []),
        ([], []),
    ],
)  # fmt: skip
def test_which_files_make_a_whole(names, found):
    assert files_of("model", names) == found


def rewritten(path, change):
    """Write a part anew with another header or other tensors."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    change(metadata, tensors)
    save_file(tensors, path, metadata=metadata)


def moved(metadata, tensors):
    said = json.loads(metadata["DCP_SHARDING_INFO"])
    said["a"]["saved_offsets"][0] += 1
    metadata["DCP_SHARDING_INFO"] = json.dumps(said)


def said(text):
    def change(metadata, tensors):
        metadata["DCP_SHARDING_INFO"] = text

    return change


def left_out(metadata, tensors):
    del tensors["a"]


def twice(metadata, tensors):
    tensors["a"] = torch.cat((tensors["a"], tensors["a"]))


def of_another_kind(metadata, tensors):
    tensors["a"] = tensors["a"].double()


NO_ROWS = "does not say which rows it holds"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (moved, "make up no whole"),
        (left_out, "make up no whole"),
        (twice, "make up no whole"),
        (of_another_kind, "make up no whole"),
        (said("[]"), NO_ROWS),
        (said('{"a": {"saved_offsets": ["x", 0]}}'), NO_ROWS),
        (said('{"a": {"saved_offsets": [2, 1]}}'), NO_ROWS),
        (said("{" * 5000), NO_ROWS),
        (said('{"a": {"saved_offsets": [true, 0]}}'), NO_ROWS),
        (said("{}"), "make up no whole"),
    ],
)
def test_parts_that_do_not_fit_are_a_sentence(folder, change, words):
    rewritten(paths(folder)[1], change)
    with pytest.raises(UserError, match=words):
        copy_into(folder, paths(folder), empty(), PUT_WHOLE)


def test_a_pickle_in_the_place_of_a_part_runs_nothing(folder, tmp_path):
    class Hostile:
        def __reduce__(self):
            return (tmp_path.joinpath("ran").write_text, ("",))

    paths(folder)[1].write_bytes(pickle.dumps(Hostile()))
    (folder / ".metadata").write_bytes(pickle.dumps(Hostile()))
    with pytest.raises(UserError, match="no readable safetensors file"):
        copy_into(folder, paths(folder), empty(), PUT_WHOLE)
    assert not (tmp_path / "ran").exists()
    with pytest.raises(AttributeError):  # what torch's own format would have done
        FileSystemReader(str(folder)).read_metadata()
    assert (tmp_path / "ran").exists()
