"""Small real data and small real models for the tests of training."""

import hashlib
from pathlib import Path

import numpy as np

from widestream.data.manifest import MANIFEST, Manifest, ShardInfo, SplitInfo, TokenizerInfo
from widestream.recipe import RunConfig, from_dict

WORDS = ("the", "matrix", "keeps", "what", "every", "head", "has", "stored", "under", "its", "own", "key")
BOUNDARY = 256
RECIPE = {
    "name": "tiny",
    "model": {
        "vocab_size": 257, "context": 16, "num_layers": 1, "num_heads": 2, "head_dim": 8, "mlp_dim": 32,
        "stream": {"kind": "matrix", "key_dim": 4},
    },
    "data": {"path": "data"},
    "train": {
        "steps": 4, "batch_size": 2, "device": "cpu", "precision": "float32", "threads": 1, "eval_every": 4,
        "save_every": 2,
    },
    "schedule": {"warmup": 1},
}  # fmt: skip
"""A whole recipe, as a file holds it."""


def write_data(folder: Path, train_documents: int = 60, heldout_documents: int = 4, seed: int = 0) -> Path:
    """A prepared folder of byte tokens: documents of random words."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(seed)
    counts = {"train": train_documents, "heldout": heldout_documents}
    manifest = Manifest(
        format=1,
        tokenizer=TokenizerInfo(kind="byte", sha256="0" * 64, vocab_size=257, boundary_id=BOUNDARY),
        dtype="uint16",
        settings={},
        sources=(),
        empty_documents=0,
        splits={name: _write_split(folder, name, count, random) for name, count in counts.items()},
    )
    (folder / MANIFEST).write_text(manifest.to_json())
    return folder


def _write_split(folder: Path, name: str, count: int, random: np.random.Generator) -> SplitInfo:
    texts = [" ".join(random.choice(WORDS, size=random.integers(5, 40))).encode() for _ in range(count)]
    lengths = np.array([len(text) + 1 for text in texts])
    tokens = np.concatenate([np.array([BOUNDARY, *text], dtype="<u2") for text in texts])
    starts = (np.cumsum(lengths) - lengths).astype("<u8")
    (folder / f"{name}_00000.bin").write_bytes(tokens.tobytes())
    (folder / f"{name}_00000.idx").write_bytes(starts.tobytes())
    shard = ShardInfo(
        file=f"{name}_00000.bin",
        tokens=len(tokens),
        documents=count,
        sha256=hashlib.sha256(tokens.tobytes()).hexdigest(),
        index_sha256=hashlib.sha256(starts.tobytes()).hexdigest(),
    )
    size = sum(len(text) for text in texts)
    return SplitInfo(shards=(shard,), tokens=len(tokens), documents=count, bytes=size)


def tiny_config(path: Path, /, stream: str = "matrix", **sections: dict) -> RunConfig:
    """A one-layer model that trains in well under a second; `sections` are laid over it."""
    values = {
        "name": "tiny",
        "model": {
            "vocab_size": 257,
            "context": 16,
            "num_layers": 1,
            "num_heads": 2,
            "head_dim": 8,
            "mlp_dim": 32,
            "stream": {"kind": "matrix", "key_dim": 4} if stream == "matrix" else {"kind": "vector"},
        },
        "data": {"path": str(path)},
        "train": {
            "steps": 6,
            "batch_size": 4,
            "device": "cpu",
            "precision": "float32",
            "threads": 1,
            "eval_every": 4,
            "save_every": 2,
        },
        "optimizer": {"lr": 1e-2},
        "schedule": {"warmup": 1},
    }
    for section, changes in sections.items():
        values[section] = values[section] | changes
    return from_dict(values)
