"""The fast way to encode: the ids of `tokenizers`, whatever the file and whatever the text."""

import base64
import itertools
import json
import random
import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_corpora import contents, texts, write_jsonl
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from widestream.data import fast_bpe, split_patterns
from widestream.data.bpe import train_tokenizer
from widestream.data.characters import CharacterSet
from widestream.data.fast_bpe import FastBpe, Unsuited
from widestream.data.file_tokenizer import FileTokenizer
from widestream.data.gpt2 import gpt2_tokenizer
from widestream.data.prepare import PrepareOptions, prepare

GPT2, GPT4, QWEN = split_patterns.KNOWN
SEPARATOR = "\0widestream\1"
PARTS = [
    *(" ", "  ", "   ", "\n", "\n\n", "\r\n", "\r", "\t", "\x0b", "\x1c", "\x85", "\xa0", "\u180e", "\u2003", "\u2028"),
    *("\u3000", "\ufeff", "\u200b", "\u200d", "\0", "\1", "\x7f", "\xad", SEPARATOR, "\0wide", "stream\1"),
    *(
        "<|endoftext|>",
        "</s>",
        "<tool_call>",
        "<|",
        "|>",
        "'",
        "'s",
        "'S",
        "'ſ",
        "'ll",
        "'LL",
        "'re",
        "'vE",
        "'ﬅ",
        "’s",
    ),
    *(
        "a",
        "B",
        "the",
        "The",
        "İ",
        "ß",
        "ǅ",
        "é",
        "e\u0301",
        "\u0301",
        "\u0327",
        "\u0345",
        "ﬃ",
        "ʰ",
        "ª",
        "ـ",
        "हि",
        "น้ำ",
    ),
    *(
        "1",
        "12",
        "1234",
        "٣",
        "½",
        "²",
        "Ⅷ",
        "〇",
        "𝟘",
        "東京",
        "タワー",
        "한국",
        "\u1100\u1161",
        "😀",
        "👩\u200d🔬",
        "🇩🇪",
    ),
    *("=", "==", "...", "$", "+", "_", "-", "/", "\\", "#", "—", "¡", "\U000105c0", "\u1c89", "\U000323b0", "\u0378"),
    *("\U0010ffff", "\ue000", "\ufffe"),
]
HOSTILE = st.lists(
    st.sampled_from(PARTS)
    | st.characters(exclude_categories=["Cs"])
    | st.text(st.sampled_from(" \n\ra1'="), max_size=6),
    max_size=24,
).map("".join)


def corpus() -> list[str]:
    """Text to train on, with everything hostile in it."""
    draw = random.Random(0)
    return [*texts(100), *("".join(draw.choices(PARTS, k=30)) for _ in range(400))]


def build(pattern: str, normalizer=None, behavior=("isolated", False)) -> dict:
    """The JSON of a small tokenizer that splits by `pattern`, as the large ones are written."""
    library = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(pattern), behavior[0], invert=behavior[1])
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    library.pre_tokenizer = pre_tokenizers.Sequence([split, level])
    library.normalizer = normalizer
    library.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=700, initial_alphabet=alphabet, special_tokens=["<|endoftext|>"], show_progress=False
    )
    library.train_from_iterator(corpus(), trainer)
    return json.loads(library.to_str())


def opened(raw: dict) -> FileTokenizer:
    return FileTokenizer(json.dumps(raw).encode(), "x")


def gpt2_like() -> dict:
    raw = build(GPT2)
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {**raw, "pre_tokenizer": level}


def qwen_like() -> dict:
    """NFC, and an added token that is recognised in text."""
    raw = build(QWEN, normalizers.NFC())
    token = {"id": 700, "content": "<tool_call>", "special": False, "normalized": False, "single_word": False}
    raw["added_tokens"].append({**token, "lstrip": False, "rstrip": False})
    return raw


def llama3_like() -> dict:
    """Every pair that makes a token is listed, in the order of the tokens, and some tokens come whole only."""
    raw = build(GPT4)
    vocab = raw["model"]["vocab"]
    del vocab["<|endoftext|>"]  # special tokens stand with the added ones alone
    for whole in ("Ġfaçades".replace("ç", "Ã§"), "12", "tqb", "==="):
        vocab.setdefault(whole, max(vocab.values()) + 1)
    merges = []
    for token in sorted(vocab, key=lambda token: vocab[token]):
        cuts = [(token[:i], token[i:]) for i in range(1, len(token))]
        merges += [list(cut) for cut in cuts if cut[0] in vocab and cut[1] in vocab]
    raw["model"] |= {"ignore_merges": True, "merges": merges}
    return raw


MAKERS = {
    "trained": None,
    "gpt2": None,
    "gpt2-like": gpt2_like,
    "gpt4-like": lambda: build(GPT4, behavior=("removed", True)),
    "llama3-like": llama3_like,
    "qwen-like": qwen_like,
}


@pytest.fixture(scope="module", params=MAKERS)
def tokenizer(request, tmp_path_factory) -> FileTokenizer:
    """Each of the known forms."""
    if request.param == "trained":
        folder = tmp_path_factory.mktemp("trained")
        return train_tokenizer([write_jsonl(folder / "a.jsonl", corpus())], 700, folder / "bpe.json", progress=False)
    return gpt2_tokenizer() if request.param == "gpt2" else opened(MAKERS[request.param]())


def reference(tokenizer: FileTokenizer, text: str) -> list[int]:
    (encoding,) = tokenizer._tokenizer.encode_batch_fast([text], add_special_tokens=False)
    return encoding.ids


def test_known_forms_are_fast(tokenizer):
    assert tokenizer.engine == "tiktoken"


@given(batch=st.lists(HOSTILE, max_size=4))
@settings(max_examples=150, deadline=None)
def test_ids_are_those_of_tokenizers(tokenizer, batch):
    ids = [row.tolist() for row in tokenizer.encode_batch(batch)]
    assert ids == [reference(tokenizer, text) for text in batch]
    assert [tokenizer.decode(row) for row in ids] == [tokenizer.decode(reference(tokenizer, text)) for text in batch]


@given(text=st.text(st.sampled_from(" \n\r\t\xa0ab1'sS=.\u0301"), max_size=40))
@settings(max_examples=200, deadline=None)
def test_ids_are_those_of_tokenizers_around_white_space(tokenizer, text):
    assert tokenizer.encode_batch([text])[0].tolist() == reference(tokenizer, text)


def test_every_pair_of_hostile_parts(tokenizer):
    pairs = ["".join(pair) for pair in itertools.product(PARTS, repeat=2)]
    for text, row in zip(pairs, tokenizer.encode_batch(pairs), strict=True):
        assert row.tolist() == reference(tokenizer, text), text


def test_both_libraries_class_every_character_alike():
    """With other versions this may fail: then `unequal_characters` finds the difference, and nothing is wrong but the
    set of versions that it takes as compared."""
    assert split_patterns.unequal_characters() is None
    everything = "".join(map(chr, [*range(0xD800), *range(0xE000, 0x110000)]))
    assert split_patterns.compare_classes(everything) == set()


@pytest.mark.slow
@pytest.mark.parametrize("pattern", [GPT2, GPT4])
def test_every_character_between_others(pattern):
    tokenizer = opened(build(pattern))
    for begin in range(0, 0x40000, 0x1000):
        characters = [chr(i) for i in range(begin, begin + 0x1000) if not 0xD800 <= i < 0xE000]
        text = "".join(f"a{character}1 {character}{character}\n'{character}s" for character in characters)
        assert tokenizer.encode_batch([text])[0].tolist() == reference(tokenizer, text), hex(begin)


def test_a_token_that_is_not_made_by_merges_is_taken_whole():
    tokenizer = opened(llama3_like())
    (whole, parts) = tokenizer.encode_batch(["tqb", "tqbx"])
    assert (whole.size, parts.size) == (1, 4)


def test_characters_that_are_classed_differently_are_left_to_tokenizers(monkeypatch):
    monkeypatch.setattr(fast_bpe, "unequal_characters", lambda: CharacterSet([0x6771, 0x323B0]))
    tokenizer = opened(gpt2_like())
    assert tokenizer.engine == "tiktoken"
    slow, real = [], FastBpe._slowly
    monkeypatch.setattr(FastBpe, "_slowly", lambda self, text: slow.append(text) or real(self, text))
    batch = ["a", "東京", "b \U000323b0", "京"]
    assert [row.tolist() for row in tokenizer.encode_batch(batch)] == [reference(tokenizer, text) for text in batch]
    assert slow == ["東京", "b \U000323b0"]


def test_a_difference_between_the_libraries_is_found(monkeypatch):
    monkeypatch.setattr(split_patterns, "_COMPARED", set())
    monkeypatch.setattr(split_patterns, "_matched_by_tiktoken", lambda pattern, text: {"é", "東"})
    monkeypatch.setattr(split_patterns, "_matched_by_tokenizers", lambda pattern, text: {"é", "\U000323b0"})
    found = split_patterns.unequal_characters.__wrapped__()
    assert [text for text in ("a", "é", "x東", "\U000323b0", "京") if found.touches(text)] == ["x東", "\U000323b0"]


@pytest.mark.parametrize("text", ["a", "é", "e\u0301", "東\u0327\u0301", "\u0378", "\ue000", "\U0010ffff"])
def test_only_what_python_knows_to_be_normal_is_taken_as_it_is(text):
    tokenizer = opened(qwen_like())
    fast = tokenizer._open_fast()
    assert isinstance(fast, FastBpe)
    expected = tokenizer._tokenizer.normalizer.normalize_str(text)
    assert fast.composed(text) == expected
    fast._library = None  # what needs the library now fails
    if text in ("e\u0301", "\u0378"):
        with pytest.raises(AttributeError):
            fast.composed(text)
    else:
        assert fast.composed(text) == expected


MEGABYTE = 1_000_000
LONG = {
    "letters": "a" * MEGABYTE,
    "random letters": "".join(random.Random(0).choices("abcdefghijklmnopqrstuvwxyz", k=MEGABYTE)),
    "signs": "=" * MEGABYTE,
    "digits": "1" * MEGABYTE,
    "base64": base64.b64encode(random.Random(0).randbytes(750_000)).decode(),
    "chinese": "".join(map(chr, random.Random(0).choices(range(0x4E00, 0x9FFF), k=MEGABYTE // 3))),
    "marks": "a" + "\u0301" * (MEGABYTE // 2),
    "spaces": " " * MEGABYTE,
    "more spaces than fit on a stack": " " * 3 * MEGABYTE + "x",
    "lines": "x" + "\n" * MEGABYTE + "x",
    "spaces and lines": " \n" * (MEGABYTE // 2),
    "special tokens": "<|endoftext|>" * (MEGABYTE // 13),
    "separators": SEPARATOR * (MEGABYTE // 12),
}


@pytest.mark.parametrize("name", LONG)
def test_long_runs_take_no_longer_than_text(name):
    tokenizer = gpt2_tokenizer()
    tokenizer.encode_batch(["x"])
    begin = time.thread_time()
    ids = tokenizer.encode_batch(["before", LONG[name], "after"])
    assert time.thread_time() - begin < 8, "a megabyte takes a fraction of a second, or hours if time is quadratic"
    assert [row.tolist() for row in ids] == [reference(tokenizer, text) for text in ("before", LONG[name], "after")]


def of_model(raw: dict, **changes) -> dict:
    return {**raw, "model": {**raw["model"], **changes}}


def swapped(raw: dict) -> dict:
    merges = list(raw["model"]["merges"])
    merges[3], merges[40] = merges[40], merges[3]
    return of_model(raw, merges=merges)


def with_unlisted_pair(raw: dict) -> dict:
    """A merge is taken away, its token is not: later ones build on it, but text never comes to it."""
    merges = [list(pair) if not isinstance(pair, str) else pair.split(" ") for pair in raw["model"]["merges"]]
    bases = {part for pair in merges for part in pair}
    first = next(pair for pair in merges if "".join(pair) in bases)
    return of_model(raw, merges=[pair for pair in merges if pair != first])


def with_strip(raw: dict) -> dict:
    return {**raw, "normalizer": {"type": "Strip", "strip_left": True, "strip_right": True}}


def with_added(raw: dict, content: str) -> dict:
    (token,) = raw["added_tokens"]
    return {**raw, "added_tokens": [token, {**token, "id": 900, "content": content, "special": False}]}


PREFIXED = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
UNKNOWN = {
    "another pattern": (lambda raw: {**raw, "pre_tokenizer": build(r"\w+|\W")["pre_tokenizer"]}, "pre_tokenizer"),
    "a prefix space": (lambda raw: {**raw, "pre_tokenizer": PREFIXED}, "pre_tokenizer"),
    "no pre_tokenizer": (lambda raw: {**raw, "pre_tokenizer": None}, "pre_tokenizer"),
    "digits by themselves": (
        lambda raw: {
            **raw,
            "pre_tokenizer": {
                "type": "Sequence",
                "pretokenizers": [{"type": "Digits", "individual_digits": True}, raw["pre_tokenizer"]],
            },
        },
        "pre_tokenizer",
    ),
    "matches merged with neighbours": (
        lambda raw: {**raw, "pre_tokenizer": build(GPT2, behavior=("merged_with_next", False))["pre_tokenizer"]},
        "pre_tokenizer",
    ),
    "a normalizer": (with_strip, "normalizer"),
    "an added token beyond ASCII": (lambda raw: with_added(raw, "é"), "added tokens"),
    "merges in another order": (swapped, "order"),
    "a token that is never made": (with_unlisted_pair, "do not make all"),
    "marked parts of words": (lambda raw: of_model(raw, end_of_word_suffix="</w>"), "parts of words"),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_unknown_forms_are_left_to_tokenizers(name):
    change, reason = UNKNOWN[name]
    raw = gpt2_like()
    if name == "marked parts of words":
        raw = of_model(raw, merges=[])
    tokenizer = opened(change(raw))
    assert re.match(rf"tokenizers \(.*{reason}", tokenizer.engine)
    batch = corpus()[:150]
    assert [row.tolist() for row in tokenizer.encode_batch(batch)] == [reference(tokenizer, text) for text in batch]


def test_a_model_that_is_no_bpe_is_left_to_tokenizers():
    level = gpt2_like()["pre_tokenizer"]
    model = {"type": "WordLevel", "vocab": {"</s>": 0, "a": 1, "[UNK]": 2}, "unk_token": "[UNK]"}
    tokenizer = opened({"version": "1.0", "added_tokens": [], "model": model, "pre_tokenizer": level})
    assert tokenizer.engine == "tokenizers (it is not a BPE)"
    assert tokenizer.encode_batch(["a"])[0].tolist() == [1]


def test_missing_bytes_are_left_to_tokenizers():
    raw = gpt2_like()
    vocab = {token: i for token, i in raw["model"]["vocab"].items() if token != "ÿ"}
    merges = [pair for pair in raw["model"]["merges"] if "ÿ" not in "".join(pair)]
    tokenizer = opened(of_model(raw, vocab=vocab, merges=merges))
    assert "lacks some of the 256 bytes" in tokenizer.engine


def test_a_sample_decides_in_the_end(monkeypatch):
    """Whatever was overlooked: other ids of the sample, and `tokenizers` encodes."""
    monkeypatch.setitem(split_patterns.KNOWN, GPT2, GPT4)
    tokenizer = opened(gpt2_like())
    assert tokenizer.engine == "tokenizers (tiktoken made other ids of a sample)"


@st.composite
def small_bpes(draw) -> dict:
    """Any merges, not only such as training finds: of pairs of tokens there are, in any order of ids."""
    symbols = list(fast_bpe.BYTE_SYMBOLS)
    tokens, merges = list("abc"), []
    for _ in range(draw(st.integers(1, 8))):
        pair = [draw(st.sampled_from(tokens)), draw(st.sampled_from(tokens))]
        if pair not in merges and len("".join(pair)) < 7:
            merges.append(pair)
            tokens.append("".join(pair))
    if draw(st.booleans()):
        merges = [[t[:i], t[i:]] for t in dict.fromkeys(tokens) for i in range(1, len(t))]
        merges = [pair for pair in merges if pair[0] in tokens and pair[1] in tokens]
    products = list(dict.fromkeys(["".join(pair) for pair in merges]))
    if draw(st.booleans()):
        products = draw(st.permutations(products))
    extra = ["cab"] if draw(st.booleans()) and "cab" not in products else []
    vocab = {token: i for i, token in enumerate([*symbols, *products, *extra, "</s>"])}
    model = {"type": "BPE", "vocab": vocab, "merges": merges, "ignore_merges": draw(st.booleans())}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {"version": "1.0", "added_tokens": [], "model": model, "pre_tokenizer": level}


def test_any_merges():
    engines = set()

    @given(raw=small_bpes(), batch=st.lists(st.text(st.sampled_from("abc"), max_size=12), min_size=4, max_size=8))
    @settings(max_examples=500, deadline=None)
    def check(raw, batch):
        tokenizer = opened(raw)
        engines.add(tokenizer.engine)
        assert [row.tolist() for row in tokenizer.encode_batch(batch)] == [reference(tokenizer, text) for text in batch]

    check()
    reasons = ["its merges are not in the order of their ids", "its merges do not make all of its tokens"]
    assert engines == {"tiktoken", *(f"tokenizers ({reason})" for reason in reasons)}


def test_shards_do_not_depend_on_workers_or_engine(tmp_path, monkeypatch):
    monkeypatch.setattr("widestream.data.encode._BATCH_BYTES", 5_000)
    source = write_jsonl(tmp_path / "source.jsonl", corpus())
    tokenizer = opened(qwen_like())
    options = PrepareOptions(heldout=0.1, shard_tokens=3_000)
    for workers in (1, 2, 3):
        prepare([source], tmp_path / str(workers), tokenizer, options, workers=workers, progress=False)

    def refuse(*_, **__):
        raise Unsuited("for the test")

    monkeypatch.setattr(FastBpe, "open", refuse)
    other = FileTokenizer(tokenizer.content, "x")
    assert other.engine == "tokenizers (for the test)"
    prepare([source], tmp_path / "slow", other, options, workers=2, progress=False)
    assert len(contents(tmp_path / "1")) > 6
    for name in ("2", "3", "slow"):
        assert contents(tmp_path / name) == contents(tmp_path / "1")


def test_what_is_said_to_be_proved_is():
    """GPT-2's file, looked into as any other: it makes all of its tokens."""
    tokenizer = gpt2_tokenizer()
    assert {tokenizer.sha256} == fast_bpe.PROVED
    FastBpe.open(json.loads(tokenizer.content), tokenizer._tokenizer)
