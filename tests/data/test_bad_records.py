"""Records that cannot be used: refused by default, passed over, counted and noted when asked."""

import json

import pyarrow as pa
import pyarrow.parquet
import pytest
from small_corpora import CountingTokenizer, contents, texts, write_jsonl

from widestream.data.manifest import MOST_NOTED, read_manifest
from widestream.data.options import PrepareOptions
from widestream.data.prepare import prepare
from widestream.data.sources import open_corpus
from widestream.data.tokenizer import ByteTokenizer
from widestream.errors import UserError

BAD = {
    "null": '{"text": null}',
    "surrogate": '{"text": "so funny \\ud83d"}',
    "cut off": '{"text": "cut off by a cra',
    "other field": '{"content": "x"}',
    "other split": '{"text": "x", "split": "other"}',
    "deep": '{"text": "a", "meta": ' + "[" * 10**5 + "]" * 10**5 + "}",
    "number": "17",
    "not UTF-8": b'{"text": "fa\xe7ade"}'.decode("latin-1"),
    "long": '{"text": "' + "x" * 200_000 + '"}',
}
OPTIONS = PrepareOptions(heldout=0.1, max_record=100_000)
FORGIVING = PrepareOptions(heldout=0.1, max_record=100_000, skip_bad=True)


def write(path, *bad: str):
    good = [json.dumps({"text": text}) for text in texts(40)]
    path.write_bytes("\n".join([*good[:20], *bad, *good[20:]]).encode("latin-1", "replace"))
    return path


def run(source, out, options=OPTIONS, tokenizer=None, **more):
    return prepare([source], out, tokenizer or ByteTokenizer(), options, workers=1, progress=False, **more)


@pytest.mark.parametrize("kind", BAD)
def test_refused_unless_told_to_pass_over(tmp_path, kind):
    source = write(tmp_path / "a.jsonl", BAD[kind])
    with pytest.raises(UserError, match=r"a.jsonl, line 21.*, or pass over bad records with --skip-bad\."):
        run(source, tmp_path / "out")
    manifest = run(source, tmp_path / "out", FORGIVING)
    assert sum(split.documents for split in manifest.splits.values()) == 40
    (first,) = manifest.skipped.first
    assert first.startswith(f"{source}, line 21")
    assert (manifest.skipped.records, manifest.empty_documents) == (1, 0)
    assert read_manifest(tmp_path / "out") == manifest
    run(write(source), tmp_path / "expected")
    shards = [contents(tmp_path / name) for name in ("out", "expected")]
    assert all(shards[0][name] == shards[1][name] for name in shards[1] if name != "manifest.json")


def test_rows_of_a_table(tmp_path):
    table = pa.table({"text": [*texts(20), None, *texts(20, seed=1)]})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"row 21: the text is NoneType.*--skip-bad"):
        run(tmp_path / "a.parquet", tmp_path / "out")
    manifest = run(tmp_path / "a.parquet", tmp_path / "out", FORGIVING)
    assert manifest.skipped.first == [f"{tmp_path / 'a.parquet'}, row 21: the text is NoneType, not a string"]


def test_lines_of_a_text(tmp_path):
    good = "\n".join(texts(40)).encode()
    (tmp_path / "a.txt").write_bytes(good[:500] + b"\nfa\xe7ade\n\xff\n" + good[500:])
    options = PrepareOptions(heldout=0.1, cut=400, skip_bad=True)
    with pytest.raises(UserError, match=r"a.txt is not UTF-8 at byte 503 \(and on 1 more lines\): convert.*--skip-bad"):
        run(tmp_path / "a.txt", tmp_path / "out", PrepareOptions(heldout=0.1, cut=400))
    documents = list(open_corpus([tmp_path / "a.txt"], options).documents())
    assert "".join(document.text for document in documents) == (good[:500] + b"\n" + good[500:]).decode()
    assert run(tmp_path / "a.txt", tmp_path / "out", options).skipped.records == 2


def test_only_the_first_are_noted(tmp_path):
    manifest = run(write(tmp_path / "a.jsonl", *["17"] * 300), tmp_path / "out", FORGIVING)
    assert (manifest.skipped.records, len(manifest.skipped.first)) == (300, MOST_NOTED)


def test_nothing_but_bad_records(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"content": "x"}\n' * 10)
    message = r"corpus is empty \(10 bad records were passed over; .*line 1: no field 'text'"
    with pytest.raises(UserError, match=message):
        run(tmp_path / "a.jsonl", tmp_path / "out", FORGIVING)


def test_what_was_forgiven_is_not_taken_for_what_is_strict(tmp_path):
    good, bad = write(tmp_path / "a.jsonl"), write(tmp_path / "b.jsonl", BAD["null"])
    run(good, tmp_path / "good", FORGIVING)
    assert run(good, tmp_path / "good").splits["train"].documents > 20
    run(bad, tmp_path / "bad", FORGIVING)
    with pytest.raises(UserError, match="already prepared with different settings"):
        run(bad, tmp_path / "bad")


@pytest.fixture
def often(monkeypatch):
    """Batches of ten, recorded after each, as in a job of hours."""
    monkeypatch.setattr("widestream.data.prepare.RECORD_SECONDS", 0)
    monkeypatch.setattr("widestream.data.encode._BATCH_DOCUMENTS", 10)


@pytest.mark.parametrize("mended", ["removed", "written anew", "passed over", "in another file"])
def test_work_before_a_bad_record_is_kept(often, tmp_path, mended):
    source = tmp_path / "source" / "b.jsonl"
    source.parent.mkdir()
    write(source, BAD["null"])
    with pytest.raises(UserError, match="line 21"):
        run(source.parent, tmp_path / "out")
    options, documents = OPTIONS, [*texts(40)[:20], *texts(40)[20:]]
    if mended == "passed over":
        options = FORGIVING
        documents.insert(20, "")
    elif mended == "written anew":
        write(source, '{"text": "mended"}')
        documents.insert(20, "mended")
    else:
        write(source)
    if mended == "in another file":
        write_jsonl(source.parent / "c.jsonl", ["one more"])
        documents.append("one more")
    tokenizer = CountingTokenizer()
    run(source.parent, tmp_path / "out", options, tokenizer)
    assert tokenizer.encoded == documents[20:]
    run(source.parent, tmp_path / "expected", options)
    assert contents(tmp_path / "out") == contents(tmp_path / "expected")


def test_text_changed_before_the_place_that_was_reached_is_refused(often, tmp_path):
    source = write(tmp_path / "a.jsonl", BAD["null"])
    with pytest.raises(UserError, match="line 21"):
        run(source, tmp_path / "out")
    write_jsonl(source, texts(40, seed=3))
    with pytest.raises(UserError, match=r"half prepared from other text: a file was changed before the place.*--over"):
        run(source, tmp_path / "out")
    run(source, tmp_path / "out", overwrite=True)
    run(source, tmp_path / "expected")
    assert contents(tmp_path / "out") == contents(tmp_path / "expected")


def test_a_small_job_leaves_nothing_behind(tmp_path):
    with pytest.raises(UserError, match="line 21"):
        run(write(tmp_path / "a.jsonl", BAD["null"]), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]
