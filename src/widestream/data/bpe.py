"""`widestream data train-tokenizer`: a byte-level BPE of one's own."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from tqdm import tqdm

from widestream.data.file_tokenizer import FileTokenizer
from widestream.data.options import DEFAULTS, PrepareOptions
from widestream.data.sources import Corpus, assign_split, heldout_limit, open_corpus
from widestream.data.tokenizer_base import BOUNDARY
from widestream.errors import UserError
from widestream.files import disk_errors, make_folder, write_atomic

_SMALLEST = 257


def train_tokenizer(
    paths: Sequence[str | Path],
    vocab_size: int,
    out: str | Path,
    options: PrepareOptions = DEFAULTS,
    *,
    overwrite: bool = False,
    progress: bool = True,
) -> FileTokenizer:
    """Train a byte-level BPE on the training documents, and on them only.

    It has the 256 bytes, so it encodes any text, GPT-2's splitting of text into words, and `<|endoftext|>` as boundary
    (id 0). The same documents give the same file.

    Args:
        paths: what to read, see `open_corpus`.
        vocab_size: number of ids, at least 257. Fewer come out if the text has no more pairs to merge.
        out: the tokenizer.json to write.
        options: how they are read. Give the same paths and options here and to `prepare`, so that held-out documents
            stay unseen.
        overwrite: replace an existing file.
        progress: show progress on stderr.

    Raises:
        UserError: the vocabulary is too small, there is no text to train on, or the file exists.
    """
    out = Path(out)
    if vocab_size < _SMALLEST:
        raise UserError(f"--vocab-size is {vocab_size}: give at least {_SMALLEST} (256 bytes and the boundary).")
    if out.is_dir() or (out.exists() and not overwrite):
        raise UserError(f"{out} exists: give another --out, or --overwrite to replace a file.")
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    library = Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore[reportAttributeAccessIssue]
    library.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[BOUNDARY],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    library.train_from_iterator(_training_texts(open_corpus(paths, options), progress), trainer)
    content = library.to_str(pretty=True).encode()
    with disk_errors(out.parent, "run the same command again"):
        make_folder(out.parent)
        write_atomic(out, content)
    return FileTokenizer(content, str(out))


def _training_texts(corpus: Corpus, progress: bool) -> Iterator[str]:
    found, limit = False, heldout_limit(corpus)
    with tqdm(total=corpus.size, desc="reading", unit="B", unit_scale=True, disable=not progress) as bar:
        for document in corpus.documents():
            if document.text and assign_split(document, limit) == "train":
                found = True
                yield document.text
            bar.update(document.consumed - bar.n)
    if not found:
        raise UserError(
            "There is no text to train on: every document is empty or held out; give more text, or lower --heldout."
        )
