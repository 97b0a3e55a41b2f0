"""`widestream data prepare`: documents -> shards of tokens and a manifest."""

import collections
import contextlib
import itertools
import os
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from widestream.data.encode import Encoded, encode_documents
from widestream.data.making import make_folder
from widestream.data.manifest import FORMAT, FileInfo, Manifest, Skipped, SplitInfo, TokenizerInfo
from widestream.data.names import shown
from widestream.data.options import DEFAULT_CUT, DEFAULTS, SMALLEST_CUT, PrepareOptions
from widestream.data.shards import ShardWriter
from widestream.data.sources import Corpus, assign_split, heldout_limit, open_corpus
from widestream.data.staging import Progress, Staging, link, plan_of
from widestream.data.tokenizer_base import Tokenizer
from widestream.errors import UserError

RECORD_SECONDS = 10.0
"""Time between two records of the progress: about as much work is lost when the process is killed."""
_NAMED = 8
"""Files, or characters, that a message names, at most."""


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
    if progress:
        tqdm.write(_announcement(corpus), file=sys.stderr)
    plan = plan_of(_manifest(tokenizer, corpus, {}, Progress()))

    def work(staging: Staging) -> None:
        _Job(staging, corpus, tokenizer, overwrite).run(workers or _cpus(), progress)

    return make_folder(out, plan, corpus.stamp, work, overwrite=overwrite)


def _announcement(corpus: Corpus) -> str:
    """What will be read and what not, in a few lines."""
    counts = collections.Counter(source.split for source in corpus.read)
    by_split = ", ".join(f"{count} {split}" for split, count in counts.items() if split is not None)
    whole = f" of {len(corpus.sources)}" * (corpus.options.part is not None)
    lines = [f"Reading {len(corpus.read)}{whole} file(s)" + f" (by their names {by_split})" * bool(by_split) + "."]
    if corpus.passed_over:
        first = ", ".join(f"{entry.path} ({entry.reason})" for entry in corpus.passed_over[:_NAMED])
        more = ", ..." if len(corpus.passed_over) > _NAMED else ""
        lines.append(f"Passing over {len(corpus.passed_over)}: {first}{more}.")
    return "\n".join(lines)


def _cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _manifest(tokenizer: Tokenizer, corpus: Corpus, splits: dict[str, SplitInfo], progress: Progress) -> Manifest:
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
        empty_documents=progress.empty_documents,
        splits=splits,
        files=tuple(FileInfo(path=shown(file.name), split=file.split, bytes=file.size) for file in corpus.read),
        passed_over=corpus.passed_over,
        skipped=progress.skipped,
    )


class _Job:
    """One preparation, from where it stands to its end."""

    def __init__(self, staging: Staging, corpus: Corpus, tokenizer: Tokenizer, overwrite: bool):
        self._staging, self._corpus, self._tokenizer = staging, corpus, tokenizer
        self._dtype = staging.plan["dtype"]
        self._progress = staging.load(overwrite)
        self._limit = heldout_limit(corpus)
        if staging.changed and not self._is_found_again():
            if not overwrite:
                raise UserError(
                    f"{shown(staging.folder)} is half prepared from other text: a file was changed before the place "
                    "that was reached; give another --out, or --overwrite to start again."
                )
            staging.clear()
            self._progress = Progress()
        self._writers = {
            split: ShardWriter(staging.folder, split, self._dtype, corpus.options.shard_tokens, state)
            for split, state in self._progress.splits.items()
        }

    def run(self, workers: int, show: bool) -> None:
        """Tokenize what is left, and publish."""
        self._tokenizer.save(self._staging.folder)
        try:
            self._check_loss("")
            with self._bar(show) as bar:
                documents = self._corpus.documents(self._progress.position)
                batches = encode_documents(documents, self._tokenizer, self._dtype, workers, self._progress.read)
                with contextlib.closing(batches):
                    self._write(batches, bar)
            for writer in self._writers.values():
                writer.end_shard()
        finally:
            for writer in self._writers.values():
                writer.close()
        self._staging.finish(self._manifest())

    def _is_found_again(self) -> bool:
        """Whether files that were changed still begin with what was read of them; the work goes on where that ends."""
        progress, chain = self._progress, 0
        document = None
        for document in itertools.islice(self._corpus.documents(), progress.read):
            chain = link(chain, document, assign_split(document, self._limit))
        if document is not None:
            progress.position, progress.consumed = document.after, document.consumed
        return chain == progress.chain

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

    def _write(self, batches: Iterable[Encoded], bar: "tqdm[Any]") -> None:
        recorded = time.monotonic()
        try:
            for batch in batches:
                self._add(batch)
                last = batch.documents[-1]
                bar.update(len(batch.documents) if bar.total is None else last.consumed - self._progress.consumed)
                self._progress.position, self._progress.consumed = last.after, last.consumed
                self._check_loss("".join(loss.examples for loss in batch.losses))
                if time.monotonic() - recorded >= RECORD_SECONDS:
                    self._record()
                    recorded = time.monotonic()
        except UserError:  # bad text: once it is mended, the work goes on here
            if time.monotonic() - recorded >= RECORD_SECONDS or self._staging.recorded:
                self._record()
            raise

    def _add(self, batch: Encoded) -> None:
        """Bring the documents of a batch to their splits."""
        progress, ends = self._progress, np.cumsum(batch.lengths).tolist()
        for document, loss, start, end in zip(batch.documents, batch.losses, [0, *ends], ends, strict=False):
            split = assign_split(document, self._limit)
            progress.read += 1
            progress.chain = link(progress.chain, document, split)
            progress.skipped.note(document.problem, document.bad)
            if document.source_bytes:
                self._writers[split].add(batch.tokens[start:end], document, loss)
            elif not document.bad:
                progress.empty_documents += 1

    def _record(self) -> None:
        for writer in self._writers.values():
            writer.flush()
        self._staging.save(self._progress)

    def _check_loss(self, examples: str) -> None:
        """Refuse to lose text in silence; `examples` are lost characters."""
        lost = sum(state.lost_characters for state in self._progress.splits.values())
        if not lost or self._corpus.options.allow_lost_text:
            return
        characters = sum(state.characters for state in self._progress.splits.values())
        which = f" (among them {' '.join(dict.fromkeys(shown(c) for c in examples[:_NAMED]))})" if examples else ""
        raise UserError(
            f"The tokenizer loses text: of the first {characters:,} characters {lost:,} ({lost / characters:.2%}) are "
            f"not in its tokens{which}: use one that can spell the text, such as byte, gpt2 or one of "
            "`widestream data train-tokenizer`, or go on without these characters by --allow-lost-text."
        )

    def _manifest(self) -> Manifest:
        totals = {split: writer.totals() for split, writer in self._writers.items()}
        splits = {split: info for split, info in totals.items() if info.documents}
        if self._corpus.options.part is None:  # else it is looked at when all parts are there
            try:
                text_files = any(source.is_text_file for source in self._corpus.sources)
                check_splits(splits, self._corpus.options.heldout, self._progress.skipped, text_files)
            except UserError:
                self._staging.clear()
                raise
        if self._tokenizer.kind == "byte":
            assert all(info.tokens == info.bytes + info.documents for info in splits.values()), splits
        return _manifest(self._tokenizer, self._corpus, splits, self._progress)


def check_splits(splits: dict[str, SplitInfo], heldout: float, skipped: Skipped, text_files: bool) -> None:
    """Make sure that there is something to train on and, unless nobody wants it, to evaluate on.

    Args:
        splits: those with documents.
        heldout: the fraction that was asked for.
        skipped: for the message.
        text_files: whether there are files that --cut concerns, likewise.

    Raises:
        UserError: there is not.
    """
    if not splits:
        bad = f" ({skipped.records:,} bad records were passed over; {skipped.first[0]})" if skipped.records else ""
        raise UserError(
            f"The corpus is empty{bad}: none of its documents holds any text; give files with text in them."
        )
    if "train" not in splits:
        raise UserError("No document is left for training: lower --heldout, or mark some with the split 'train'.")
    if not {"heldout", "test"} & splits.keys() and heldout > 0:
        train = splits["train"]
        mends = ["raise --heldout, "] if train.documents > 1 else []
        if text_files:
            smaller = max(SMALLEST_CUT, min(DEFAULT_CUT, train.bytes // 10))
            mends.append(f"cut text files into more documents (for example by --cut {smaller}), ")
        raise UserError(
            f"No document was held out ({train.documents} in all, --heldout {heldout}): "
            f"{''.join(mends)}mark some with the field split = heldout, or do without evaluation by --heldout 0."
        )
