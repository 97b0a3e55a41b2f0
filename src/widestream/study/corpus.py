"""The data of demo and studies: a tokenizer trained on a corpus, and the corpus prepared with it, once."""

from pathlib import Path

from filelock import FileLock


def prepare_corpus(folder: Path, source: str, vocab_size: int) -> Path:
    """Train a tokenizer and prepare a corpus; what is there already is kept. Several processes wait for the first.

    Args:
        folder: gets tokenizer.json and data/.
        source: as `widestream data prepare` takes it.
        vocab_size: ids of the tokenizer.

    Returns:
        The prepared folder.
    """
    from widestream.data.bpe import train_tokenizer
    from widestream.data.manifest import MANIFEST
    from widestream.data.prepare import prepare
    from widestream.data.tokenizer import resolve_tokenizer

    tokenizer, data = folder / "tokenizer.json", folder / "data"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "corpus.lock"):
        if not tokenizer.is_file():
            train_tokenizer([source], vocab_size, tokenizer)
        if not (data / MANIFEST).is_file():
            prepare([source], data, resolve_tokenizer(str(tokenizer)))
    return data
