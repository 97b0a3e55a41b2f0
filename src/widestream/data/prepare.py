"""`widestream data prepare`: documents -> shards of tokens and a manifest."""

import contextlib
import os
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from widestream.data.cutting import DEFAULT_CUT, SMALLEST_CUT
from widestream.data.encode import Encoded, encode_documents
from widestream.data.manifest import FORMAT, MANIFEST, Manifest, SplitInfo, TokenizerInfo, read_manifest
from widestream.data.readers import DEFAULTS, PrepareOptions
from widestream.data.shards import ShardWriter
from widestream.data.sources import Corpus, assign_split, heldout_limit, open_corpus
from widestream.data.staging import Staging, check_out, check_plan, plan_of
from widestream.data.tokenizer_base import Tokenizer
from widestream.errors import UserError
from widestream.files import disk_errors

RECORD_SECONDS = 10.0
"""Time between two records of the progress: about as much work is lost when the process is killed."""


def prepare(
    paths: Sequence[str | Path],
    out: str | Path,
    tokenizer: Tokenizer,
    options: PrepareOptions = DEFAULTS,
    *,
    workers: int | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> Manifest:
    """Tokenize documents into shards.

    The result is the same, byte for byte, for any number of workers, and whether or not the process was killed and
    started again on the way. A folder that is already prepared in the same way is left as it is.

    Args:
        paths: what to read, see `open_corpus`.
        out: folder to make. While the work goes on, it is in OUT.preparing.
        tokenizer: makes the ids.
        options: what else shapes the result.
        workers: threads that tokenize; default: one for each CPU this process may use.
        overwrite: replace data prepared in another way (they stay until the new ones are complete).
        progress: show a progress bar on stderr.

    Returns:
        The manifest.

    Raises:
        UserError: something given cannot be used, nothing ends up in a split, or the disk is full.
    """
    out = Path(out)
    if workers is not None and workers < 1:
        raise UserError(f"--workers is {workers}: give 1 or more.")
    corpus = open_corpus(paths, options)
    if progress and corpus.ignored:
        message = (
            f"Ignoring {len(corpus.ignored)} file(s) of kinds that widestream does not read, {corpus.ignored[0]} first."
        )
        tqdm.write(message, file=sys.stderr)
    plan = plan_of(_manifest(tokenizer, corpus, 0, {}))
    with disk_errors(out, "run the same command again; what was done is kept"):
        check_out(out)
        if (out / MANIFEST).exists() and not overwrite:
            check_plan(plan, plan_of(read_manifest(out)), out, "already prepared")
            return read_manifest(out)
        staging = Staging(out, {**plan, "file times": corpus.last_change_ns})
        with staging.locked():
            if staging.complete and plan_of(read_manifest(staging.folder)) == plan:
                staging.publish()
                return read_manifest(out)
            try:
                _Job(staging, corpus, tokenizer, overwrite).run(workers or _cpus(), progress)
            except UserError:
                if not staging.recorded:
                    staging.clear()
                    staging.folder.rmdir()
                raise
    return read_manifest(out)


def _cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _manifest(tokenizer: Tokenizer, corpus: Corpus, empty_documents: int, splits: dict[str, SplitInfo]) -> Manifest:
    return Manifest(
        format=FORMAT,
        tokenizer=TokenizerInfo(
            kind=tokenizer.kind,
            sha256=tokenizer.sha256,
            vocab_size=tokenizer.vocab_size,
            boundary_id=tokenizer.boundary_id,
        ),
        dtype="uint16" if tokenizer.vocab_size <= 1 << 16 else "uint32",
        settings=asdict(corpus.options),
        sources=tuple(corpus.describe()),
        empty_documents=empty_documents,
        splits=splits,
    )


class _Job:
    """One preparation, from where it stands to its end."""

    def __init__(self, staging: Staging, corpus: Corpus, tokenizer: Tokenizer, overwrite: bool):
        self._staging, self._corpus, self._tokenizer = staging, corpus, tokenizer
        self._dtype = staging.plan["dtype"]
        self._progress = staging.load(overwrite)
        self._writers = {
            split: ShardWriter(staging.folder, split, self._dtype, corpus.options.shard_tokens, state)
            for split, state in self._progress.splits.items()
        }

    def run(self, workers: int, show: bool) -> None:
        """Tokenize what is left, and publish."""
        self._tokenizer.save(self._staging.folder)
        try:
            limit = heldout_limit(self._corpus)
            with self._bar(show) as bar:
                documents = self._corpus.documents(self._progress.position)
                batches = encode_documents(documents, self._tokenizer, self._dtype, workers)
                with contextlib.closing(batches):
                    self._write(batches, limit, bar)
            for writer in self._writers.values():
                writer.end_shard()
        finally:
            for writer in self._writers.values():
                writer.close()
        self._staging.finish(self._manifest())

    def _bar(self, show: bool) -> "tqdm[Any]":
        size = self._corpus.size
        return tqdm(
            total=size,
            initial=self._progress.consumed,
            desc="preparing",
            unit=" documents" if size is None else "B",
            unit_scale=True,
            disable=not show,
            dynamic_ncols=True,
        )

    def _write(self, batches: Iterable[Encoded], limit: int, bar: "tqdm[Any]") -> None:
        recorded = time.monotonic()
        for batch in batches:
            ends = np.cumsum(batch.lengths).tolist()
            for document, start, end in zip(batch.documents, [0, *ends], ends, strict=False):
                if document.source_bytes == 0:
                    self._progress.empty_documents += 1
                    continue
                split = assign_split(document, limit)
                self._writers[split].add(batch.tokens[start:end], document.source_bytes)
            last = batch.documents[-1]
            bar.update(len(batch.documents) if bar.total is None else last.consumed - self._progress.consumed)
            self._progress.position, self._progress.consumed = last.after, last.consumed
            if time.monotonic() - recorded >= RECORD_SECONDS:
                for writer in self._writers.values():
                    writer.flush()
                self._staging.save(self._progress)
                recorded = time.monotonic()

    def _manifest(self) -> Manifest:
        totals = {split: writer.totals() for split, writer in self._writers.items()}
        splits = {split: info for split, info in totals.items() if info.documents}
        try:
            _check_splits(splits, self._corpus)
        except UserError:
            self._staging.clear()
            raise
        if self._tokenizer.kind == "byte":
            assert all(info.tokens == info.bytes + info.documents for info in splits.values()), splits
        return _manifest(self._tokenizer, self._corpus, self._progress.empty_documents, splits)


def _check_splits(splits: dict[str, SplitInfo], corpus: Corpus) -> None:
    if not splits:
        raise UserError("The corpus is empty: none of its documents holds any text; give files with text in them.")
    if "train" not in splits:
        raise UserError("No document is left for training: lower --heldout, or mark some with the split 'train'.")
    if "heldout" not in splits and corpus.options.heldout > 0:
        train = splits["train"]
        mends = ["raise --heldout, "] if train.documents > 1 else []
        if any(source.is_text_file for source in corpus.sources):
            smaller = max(SMALLEST_CUT, min(DEFAULT_CUT, train.bytes // 10))
            mends.append(f"cut text files into more documents (for example by --cut {smaller}), ")
        raise UserError(
            f"No document was held out ({train.documents} in all, --heldout {corpus.options.heldout}): "
            f"{''.join(mends)}mark some with the field split = heldout, or do without evaluation by --heldout 0."
        )
