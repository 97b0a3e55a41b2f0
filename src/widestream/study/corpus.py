"""The data of a study: given, or a tokenizer trained on a corpus and the corpus prepared with it, once."""

from pathlib import Path

from filelock import FileLock

from widestream.data.manifest import MANIFEST, read_manifest
from widestream.data.remote import local_folder
from widestream.errors import UserError
from widestream.files import make_folder
from widestream.study.spec import Study


def find_data(study: Study, folder: Path, data: Path | None = None) -> Path | None:
    """The study's data: given, or prepared from the corpus that the study names; None: the recipes know.

    What is prepared already is kept. Several processes wait for the first.

    Args:
        study: for its corpus.
        folder: gets tokenizer.json and data/, unless the study says where they go.
        data: what is given.

    Raises:
        UserError: the given folder holds no prepared data, or another corpus was prepared where this one belongs.
    """
    if data is not None:
        if not (local_folder(data) / MANIFEST).is_file():
            raise UserError(f"{data} holds no prepared data; make it with `widestream data prepare`.")
        return data
    if study.corpus is None:
        return None
    source, vocab_size = study.corpus["source"], study.corpus["vocab_size"]
    data = _prepare(Path(study.corpus.get("folder") or folder), source, vocab_size)
    there = read_manifest(data)
    sources = [entry["source"] for entry in there.sources]
    if sources != [source] or there.tokenizer.vocab_size != vocab_size:
        raise UserError(
            f"{data} was prepared from {', '.join(sources)} with {there.tokenizer.vocab_size:,} ids, and the study "
            f"{study.name} wants {source} with {vocab_size:,}; give another folder with "
            f"{'--data' if 'folder' in study.corpus else '--out'}."
        )
    return data


def _prepare(folder: Path, source: str, vocab_size: int) -> Path:
    from widestream.data.bpe import train_tokenizer
    from widestream.data.prepare import prepare
    from widestream.data.tokenizer import resolve_tokenizer

    tokenizer, data = folder / "tokenizer.json", folder / "data"
    make_folder(folder)
    with FileLock(folder / "corpus.lock"):
        if not tokenizer.is_file():
            train_tokenizer([source], vocab_size, tokenizer)
        if not (local_folder(data) / MANIFEST).is_file():
            prepare([source], data, resolve_tokenizer(str(tokenizer)))
    return data
