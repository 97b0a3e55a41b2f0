"""Tokenizers that cannot spell all of a text: found, refused or noted."""

import json

import pytest
from small_corpora import contents, texts, write_jsonl
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from widestream.data.bpe import train_tokenizer
from widestream.data.manifest import Manifest
from widestream.data.options import PrepareOptions
from widestream.data.prepare import prepare
from widestream.data.round_trip import FIRST, compare
from widestream.data.store import TokenStore
from widestream.data.tokenizer import ByteTokenizer, FileTokenizer
from widestream.errors import UserError

ENGLISH = [f"The miller walked to town number {i} and came back with flour." for i in range(40)]
RUSSIAN = [f"Мельник пошёл в город номер {i} и вернулся с мукой." for i in range(40)]


def made(model, trainer, *, splitter=None, normalizer=None, decoder=None) -> FileTokenizer:
    library = Tokenizer(model)
    if splitter is not None:
        library.pre_tokenizer = splitter
    if normalizer is not None:
        library.normalizer = normalizer
    if decoder is not None:
        library.decoder = decoder
    library.train_from_iterator(ENGLISH, trainer)
    return FileTokenizer(library.to_str().encode(), "mine.json")


def bpe_without_unknown():
    trainer = trainers.BpeTrainer(vocab_size=120, special_tokens=["</s>"], show_progress=False)
    return made(models.BPE(), trainer, splitter=pre_tokenizers.Whitespace())


def metaspace():
    trainer = trainers.BpeTrainer(vocab_size=200, special_tokens=["<unk>", "</s>"], show_progress=False)
    space = {"splitter": pre_tokenizers.Metaspace(), "decoder": decoders.Metaspace()}
    return made(models.BPE(unk_token="<unk>"), trainer, **space)


def word_piece():
    trainer = trainers.WordPieceTrainer(vocab_size=150, special_tokens=["[UNK]", "[SEP]"], show_progress=False)
    bert = {"normalizer": normalizers.BertNormalizer(lowercase=True), "splitter": pre_tokenizers.BertPreTokenizer()}
    return made(models.WordPiece(unk_token="[UNK]"), trainer, decoder=decoders.WordPiece(), **bert)


def words():
    trainer = trainers.WordLevelTrainer(vocab_size=8, special_tokens=["<unk>", "<eos>"], show_progress=False)
    return made(models.WordLevel(unk_token="<unk>"), trainer, splitter=pre_tokenizers.WhitespaceSplit())


def unigram():
    trainer = trainers.UnigramTrainer(
        vocab_size=120, special_tokens=["<unk>", "</s>"], unk_token="<unk>", show_progress=False
    )
    space = {"splitter": pre_tokenizers.Metaspace(), "decoder": decoders.Metaspace()}
    return made(models.Unigram(), trainer, **space)


LOSING = [bpe_without_unknown, metaspace, word_piece, words, unigram]


def run(source, out, tokenizer, allow=False) -> Manifest:
    options = PrepareOptions(heldout=0.2, allow_lost_text=allow)
    return prepare([source], out, tokenizer, options, workers=1, progress=False)


@pytest.mark.parametrize("make", LOSING)
def test_text_that_cannot_be_spelled_is_refused_with_the_share_or_noted(tmp_path, make):
    source, tokenizer = write_jsonl(tmp_path / "a.jsonl", RUSSIAN), make()
    with pytest.raises(UserError, match=r"loses text: of the first 1,\d+ characters 1,\d+ \([78]\d\.\d\d%\).*--allow-"):
        run(source, tmp_path / "out", tokenizer)
    manifest = run(source, tmp_path / "out", tokenizer, allow=True)
    train = manifest.splits["train"]
    assert 0.7 < train.lost_characters / train.characters < 0.9
    assert train.characters + manifest.splits["heldout"].characters == sum(map(len, RUSSIAN))
    assert not TokenStore.open(tmp_path / "out", "heldout").is_exact
    with pytest.raises(UserError, match="already prepared with different settings"):
        run(source, tmp_path / "out", tokenizer)


@pytest.mark.parametrize(("make", "exact"), [(metaspace, True), (word_piece, False), (bpe_without_unknown, False)])
def test_what_is_only_changed_is_accepted_and_noted(tmp_path, make, exact):
    manifest = run(write_jsonl(tmp_path / "a.jsonl", ENGLISH), tmp_path / "out", make())
    for split in manifest.splits.values():
        assert split.lost_characters == 0
        assert split.changed_documents == (0 if exact else split.documents)
        assert split.is_exact == exact


def test_bytes_lose_nothing(tmp_path):
    source = write_jsonl(tmp_path / "a.jsonl", [*RUSSIAN, *texts(40)])
    own = train_tokenizer([source], 300, tmp_path / "bpe.json", progress=False)
    for number, tokenizer in enumerate((ByteTokenizer(), own)):
        manifest = run(source, tmp_path / str(number), tokenizer)
        assert all(split.is_exact for split in manifest.splits.values())


@pytest.mark.parametrize("change", ["NFC", "prefix", "pattern"])
def test_bytes_behind_something_else(tmp_path, change):
    source = write_jsonl(tmp_path / "a.jsonl", [*RUSSIAN, *texts(40)])
    raw = json.loads(train_tokenizer([source], 300, tmp_path / "bpe.json", progress=False).content)
    if change == "NFC":
        raw["normalizer"] = {"type": "NFC"}
    elif change == "prefix":
        raw["pre_tokenizer"]["add_prefix_space"] = True
    else:
        split = {"type": "Split", "pattern": {"Regex": r"\w+|\W+"}, "behavior": "Isolated", "invert": False}
        raw["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, raw["pre_tokenizer"]]}
    tokenizer = FileTokenizer(json.dumps(raw).encode(), "mine.json")
    assert all(split.is_exact for split in run(source, tmp_path / "out", tokenizer).splits.values())
    decomposed = write_jsonl(tmp_path / "b.jsonl", [f"{i} cafe\u0301" for i in range(40)])
    manifest = run(decomposed, tmp_path / "other", tokenizer)
    assert all(split.is_exact == (change != "NFC") for split in manifest.splits.values())
    assert all(split.lost_characters == 0 for split in manifest.splits.values())


def test_a_rare_character_does_not_go_unseen(tmp_path):
    """Behind the texts that are all looked at, the unknown token or a dropped character still tells."""
    many = [f"The miller walked to {i % 40}." for i in range(10 * FIRST)]
    dropping = normalizers.Sequence([normalizers.Replace(Regex("[^A-Za-z0-9 .]"), ""), normalizers.NFC()])
    trainer = trainers.BpeTrainer(vocab_size=200, special_tokens=["<unk>", "</s>"], show_progress=False)
    space = {"splitter": pre_tokenizers.Metaspace(), "decoder": decoders.Metaspace()}
    dropper = made(models.BPE(unk_token="<unk>"), trainer, normalizer=dropping, **space)
    for tokenizer in (metaspace(), bpe_without_unknown(), dropper):
        for rare in "ж東":
            source = write_jsonl(tmp_path / "a.jsonl", [*many, *(f"The miller {rare}{i}." for i in range(3))])
            with pytest.raises(UserError, match=rf"characters 3 \(0.01%\) are not in its tokens .among them {rare}"):
                run(source, tmp_path / "out", tokenizer)


def test_the_work_is_kept_when_the_loss_is_then_allowed(tmp_path, monkeypatch):
    monkeypatch.setattr("widestream.data.prepare.RECORD_SECONDS", 0)
    monkeypatch.setattr("widestream.data.encode._BATCH_DOCUMENTS", 10)
    source = write_jsonl(tmp_path / "a.jsonl", [*ENGLISH, *RUSSIAN])
    for _ in range(2):
        with pytest.raises(UserError, match="loses text: of the first"):
            run(source, tmp_path / "out", metaspace())
    progress = json.loads((tmp_path / "out.preparing" / "progress.json").read_text())["progress"]
    assert progress["read"] == 50
    run(source, tmp_path / "out", metaspace(), allow=True)
    run(source, tmp_path / "expected", metaspace(), allow=True)
    assert contents(tmp_path / "out") == contents(tmp_path / "expected")


@pytest.mark.parametrize(
    ("text", "spelled", "lost", "changed"),
    [
        ("a b", "a b", 0, False),
        ("a b", " a b", 0, False),
        (" a b", "a b", 0, False),
        ("a  b", "a b", 0, True),
        ("Ab", "ab", 0, True),
        ("Café", "cafe", 0, True),
        ("ﬁ", "fi", 0, True),
        ("a\u200bb\x00", "ab", 0, True),
        ("ab", "ba", 0, True),
        ("abca", "bc", 2, True),
        ("東京", "京", 1, True),
        ("क्या", "कया", 1, True),
        ("", "", 0, False),
        ("a", "", 1, True),
    ],
)
def test_comparison(text, spelled, lost, changed):
    loss = compare(text, spelled)
    assert (loss.characters, loss.changed) == (lost, changed)


def test_a_model_that_cannot_encode_is_named():
    model = {"type": "Unigram", "unk_id": None, "vocab": [["</s>", 0.0], ["a", -1.0]], "byte_fallback": False}
    content = json.dumps({"version": "1.0", "added_tokens": [], "model": model})
    with pytest.raises(UserError, match=r"mine.json cannot encode the text .*use another tokenizer"):
        FileTokenizer(content.encode(), "mine.json").encode_batch(["ж"])
