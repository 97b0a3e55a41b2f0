"""`widestream data inspect`: what a prepared folder holds."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from widestream.data.manifest import read_manifest
from widestream.data.names import shown
from widestream.data.remote import url_of
from widestream.data.store import TokenStore
from widestream.data.tokenizer import load_tokenizer

_BEGINNING = 64
"""Tokens decoded of a document."""


def inspect_folder(folder: str | Path, documents: int = 0, verify: bool = False) -> dict[str, Any]:
    """Describe a prepared folder, as JSON-able values.

    Args:
        folder: written by `widestream data prepare`, or the URL of one.
        documents: decode the beginnings of that many documents of each split.
        verify: read everything and check hashes, document starts and ids.

    Returns:
        `path`, `tokenizer`, `dtype`, `settings`, `sources`, `files`, `passed_over`, `empty_documents`, `skipped`,
        `verified`, and for each of `splits`: `tokens`, `bytes`, `documents`, `bytes_per_token`, `shards`, `characters`,
        `lost_characters`, `changed_documents`, `fingerprint`, `beginnings`.

    Raises:
        UserError: something is missing, damaged, or (with `verify`) altered.
    """
    manifest = read_manifest(folder)
    tokenizer = load_tokenizer(folder)
    splits = {}
    for name, info in manifest.splits.items():
        store = TokenStore.open(folder, name, verify=verify)
        first = [store.document(i)[:_BEGINNING] for i in range(min(documents, store.documents))]
        splits[name] = {
            "tokens": info.tokens,
            "bytes": info.bytes,
            "documents": info.documents,
            "bytes_per_token": info.bytes / info.tokens,
            "shards": len(info.shards),
            "characters": info.characters,
            "lost_characters": info.lost_characters,
            "changed_documents": info.changed_documents,
            "fingerprint": store.fingerprint,
            "beginnings": [tokenizer.decode(ids.tolist()) for ids in first],
        }
    return {
        "path": shown(url_of(folder) or folder),
        "tokenizer": asdict(manifest.tokenizer),
        "dtype": manifest.dtype,
        "settings": manifest.settings,
        "sources": list(manifest.sources),
        "files": [asdict(file) for file in manifest.files],
        "passed_over": [asdict(entry) for entry in manifest.passed_over],
        "empty_documents": manifest.empty_documents,
        "skipped": asdict(manifest.skipped),
        "verified": verify,
        "splits": splits,
    }
