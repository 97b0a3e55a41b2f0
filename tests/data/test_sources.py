import bz2
import gzip
import json
import lzma
import os
import sys
import types

import pyarrow as pa
import pyarrow.parquet
import pytest
import zstandard
from small_corpora import texts, write_jsonl

from widestream.data.options import PrepareOptions
from widestream.data.sources import BUNDLED, Position, assign_split, heldout_limit, open_corpus
from widestream.errors import UserError

PACK = {
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.ZstdCompressor().compress,
    ".bz2": bz2.compress,
}


def read(*paths, **options) -> list:
    return list(open_corpus(paths, PrepareOptions(**options)).documents())


def texts_of(*paths, **options) -> list[str]:
    return [document.text for document in read(*paths, **options)]


@pytest.mark.parametrize("name", ["a.txt", "a.md", "A.TXT"])
def test_a_short_text_file_is_one_document_unchanged(tmp_path, name):
    (tmp_path / name).write_bytes("  first\r\n\r\nzwölf\n".encode())
    (document,) = read(tmp_path / name)
    assert document.text == "  first\r\n\r\nzwölf\n"
    assert document.source_bytes == len(document.text.encode())


@pytest.mark.parametrize("name", ["a.txt", "a.md"])
def test_a_long_text_file_is_cut_unless_told_otherwise(tmp_path, name):
    text = "\n\n".join(texts(1500))
    (tmp_path / name).write_text(text, encoding="utf-8")
    documents = read(tmp_path / name)
    assert [document.source_bytes <= 100_000 for document in documents] == [True] * 3
    assert [document.text[-2:] for document in documents[:-1]] == ["\n\n"] * 2
    assert "".join(document.text for document in documents) == text
    assert documents[-1].consumed == (tmp_path / name).stat().st_size
    assert texts_of(tmp_path / name, cut=0) == [text]


def test_only_text_files_are_cut(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", texts(40))
    write_parquet(tmp_path / "b.parquet", count=40)
    assert texts_of(tmp_path, cut=16) == texts(40) * 2


def test_cut_too_small(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(UserError, match="--cut is 15: give at least 16 bytes, or 0"):
        open_corpus([tmp_path / "a.txt"], PrepareOptions(cut=15))


def test_folder_is_walked_in_sorted_order(tmp_path):
    for name in ("b.txt", "a/z.txt", "a/b/c.md", "a.txt", "skip.csv", ".hidden.txt", ".git/x.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    assert texts_of(tmp_path) == ["a/b/c.md", "a/z.txt", "a.txt", "b.txt"]
    passed_over = {entry.path: entry.reason for entry in open_corpus([tmp_path]).passed_over}
    assert passed_over == {
        str(tmp_path / ".git"): "hidden",
        str(tmp_path / ".hidden.txt"): "hidden",
        str(tmp_path / "skip.csv"): "no kind of file that is read",
    }


@pytest.mark.parametrize("suffix", ["", *PACK])
def test_json_lines_plain_and_packed(tmp_path, suffix):
    path = write_jsonl(tmp_path / "a.jsonl", texts(5000, longest=20))
    if suffix:
        packed = tmp_path / f"a.jsonl{suffix}"
        data, pack = path.read_bytes(), PACK[suffix]
        packed.write_bytes(pack(data[:1000]) + pack(data[1000:]))  # two streams in one file are one text
        path = packed
    documents = read(path)
    assert [document.text for document in documents] == texts(5000, longest=20)
    assert documents[-1].consumed == path.stat().st_size
    assert [document.consumed for document in documents] == sorted(document.consumed for document in documents)


@pytest.mark.parametrize("suffix", PACK)
def test_packed_file_cut_short_or_damaged(tmp_path, suffix):
    data = PACK[suffix](write_jsonl(tmp_path / "a.jsonl", texts(3000)).read_bytes())
    path = tmp_path / f"a.jsonl{suffix}"
    for content in (data[: len(data) // 2], data[:-2]):
        path.write_bytes(content)
        with pytest.raises(UserError, match=rf"a.jsonl{suffix} is damaged or cut short"):
            read(path)
    path.write_bytes(b"\0" + data)
    with pytest.raises(UserError, match=rf"a.jsonl{suffix} is neither packed as {suffix} says nor text"):
        read(path)


def test_fields(tmp_path):
    rows = [{"body": "one", "split": "heldout"}, {"body": "two", "split": "train"}, {"body": "three", "split": None}]
    (tmp_path / "a.jsonl").write_text("\ufeff" + "\n\n".join(json.dumps(row) for row in rows))
    documents = read(tmp_path / "a.jsonl", text_field="body")
    assert [document.split for document in documents] == ["heldout", "train", None]
    assert [assign_split(document, 0) for document in documents] == ["heldout", "train", "train"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{'text': 1}", "line 2: not JSON"),
        ("[1]", "line 2: expected a JSON object, found list"),
        ('{"body": "x", "id": 1}', r"line 2: no field 'text' \(there is body, id\): .*--text-field"),
        ('{"text": 7}', "line 2: the text is int, not a string"),
        ('{"text": null}', "line 2: the text is NoneType"),
        ('{"text": "x", "split": "tests"}', "line 2: split is 'tests', which is no word for train, heldout or test"),
        ('{"text": "x", "split": 0}', "line 2: split is 0, which is no word"),
        ('{"text": "x", "meta": ' + "[" * 10**5 + "]" * 10**5 + "}", "line 2: JSON nested too deeply"),
        ('{"text": "ab\\ud800"}', "line 2: half of a surrogate pair at character 2"),
    ],
)
def test_bad_lines_name_file_and_line(tmp_path, line, message):
    (tmp_path / "a.jsonl").write_text('{"text": "fine"}\n' + line + "\n")
    with pytest.raises(UserError, match=rf"a\.jsonl, {message}"):
        read(tmp_path / "a.jsonl")


def test_invalid_utf8_names_file_and_byte(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfabc\xff")
    with pytest.raises(UserError, match=r"a\.txt is not UTF-8 at byte 6: convert"):
        read(tmp_path / "a.txt")
    first = '{"text": "zwölf"}\n'.encode()
    (tmp_path / "a.jsonl").write_bytes(first + b'{"text": "\xe9"}\n')
    with pytest.raises(UserError, match=rf"a\.jsonl, line 2, is not UTF-8 at byte {len(first) + 10}: convert"):
        read(tmp_path / "a.jsonl")


def write_parquet(path, count=100, group=16, **columns):
    table = pa.table({"text": texts(count), "split": ["train", None, "heldout", None] * (count // 4)} | columns)
    pyarrow.parquet.write_table(table, path, row_group_size=group)
    return path


def test_parquet(tmp_path):
    documents = read(write_parquet(tmp_path / "a.parquet"))
    assert [document.text for document in documents] == texts(100)
    assert [document.split for document in documents[:4]] == ["train", None, "heldout", None]
    assert documents[-1].consumed == pytest.approx((tmp_path / "a.parquet").stat().st_size, abs=1)


def test_bad_parquet(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", body=["x"] * 100, text=["x"] * 9 + [None] * 91)
    with pytest.raises(UserError, match=r"a\.parquet: no field 'words' \(there is text, split, body\): .*--text-field"):
        read(path, text_field="words")
    with pytest.raises(UserError, match=r"a\.parquet, row 10: the text is NoneType"):
        read(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"a\.parquet is not a parquet file or is cut short"):
        read(path)


@pytest.mark.parametrize("module", ["pyarrow", "zstandard", "datasets"])
def test_missing_package_names_what_to_install(tmp_path, monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)
    write_parquet(tmp_path / "a.parquet")
    (tmp_path / "a.jsonl.zst").write_bytes(PACK[".zst"](b'{"text": "x"}'))
    name = {"pyarrow": tmp_path / "a.parquet", "zstandard": tmp_path / "a.jsonl.zst", "datasets": "hf:a/b"}[module]
    with pytest.raises(UserError, match=rf"needs (the )?{module}.*: run `pip install 'widestream\[(data|hub)\]'`"):
        read(name)


class HubStub(types.ModuleType):
    """Stands in for the `datasets` package: streams rows, and records how it was asked."""

    def __init__(self, rows, error=None):
        super().__init__("datasets")
        self.rows, self.error, self.asked = rows, error, None

    def load_dataset(self, path, name, **options):
        self.asked = (path, name, options)
        return self

    def skip(self, count):
        return HubStub(self.rows[count:], self.error)

    def __iter__(self):
        yield from self.rows
        if self.error:
            raise self.error


def test_hub_data_set(monkeypatch):
    hub = HubStub([{"text": "one"}, {"text": "two"}, {"text": "three"}])
    monkeypatch.setitem(sys.modules, "datasets", hub)
    corpus = open_corpus(["hf:owner/name:config@refs/convert/parquet"])
    assert corpus.size is None
    assert [document.text for document in corpus.documents()] == ["one", "two", "three"]
    assert hub.asked == (
        "owner/name",
        "config",
        {"split": "train", "revision": "refs/convert/parquet", "streaming": True},
    )
    assert [document.text for document in corpus.documents(Position(0, 2))] == ["three"]
    assert texts_of("hf:owner/name") == ["one", "two", "three"]
    assert hub.asked == ("owner/name", None, {"split": "train", "revision": None, "streaming": True})


def test_hub_without_connection_or_column(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", HubStub([], ConnectionError("Couldn't reach the Hub\nlong story")))
    with pytest.raises(UserError, match=r"Cannot read hf:a/b \(Couldn't reach the Hub\): check .* local"):
        read("hf:a/b")
    monkeypatch.setitem(sys.modules, "datasets", HubStub([{"story": "x"}]))
    with pytest.raises(UserError, match=r"hf:a/b, row 1: no field 'text' \(there is story\)"):
        read("hf:a/b")


def test_reading_goes_on_from_any_document(tmp_path):
    (tmp_path / "a.txt").write_text("\n".join(texts(30)), encoding="utf-8")
    for name in ("d.md", "e.txt", "f.txt"):
        (tmp_path / name).write_text("" if name == "e.txt" else name)
    write_jsonl(tmp_path / "b.jsonl", texts(20))
    write_parquet(tmp_path / "c.parquet", count=40, group=7)
    corpus = open_corpus([tmp_path], PrepareOptions(cut=1000))
    documents = list(corpus.documents())
    assert len(documents) > 67
    assert sum(document.text == "" for document in documents) == 1
    for index, document in enumerate(documents):
        assert list(corpus.documents(document.after)) == documents[index + 1 :]


def splits(path, heldout) -> dict[str, str]:
    limit = heldout_limit(open_corpus([path], PrepareOptions(heldout=heldout)))
    return {document.text: assign_split(document, limit) for document in read(path)}


@pytest.mark.parametrize(("count", "heldout", "expected"), [(5, 0.001, 1), (4, 0.001, 0), (40, 0.001, 1), (40, 0, 0)])
def test_one_of_five_or_more_documents_is_held_out(tmp_path, count, heldout, expected):
    found = splits(write_jsonl(tmp_path / "a.jsonl", ["", "", *texts(count)]), heldout)
    assert [text for text, split in found.items() if split == "heldout" and text == ""] == []
    assert list(found.values()).count("heldout") == expected


def test_equal_documents_are_not_all_held_out(tmp_path):
    assert splits(write_jsonl(tmp_path / "a.jsonl", ["same"] * 40), 0.001) == {"same": "train"}


def test_splits_of_the_source_are_left_alone(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", texts(40), [*["train"] * 39, None])
    assert set(splits(path, 0.001).values()) == {"train"}


def test_corpus_is_read_only_until_something_is_held_out(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [f"document {i}" for i in range(2000)])
    path.write_text(path.read_text() + "not json\n")
    assert heldout_limit(open_corpus([path], PrepareOptions(heldout=0.1))) == int(0.1 * 2**64)
    with pytest.raises(UserError, match="line 2001: not JSON"):
        heldout_limit(open_corpus([path], PrepareOptions(heldout=1e-9)))


def test_split_by_hash_does_not_depend_on_the_order(tmp_path):
    names = texts(4000, longest=3)
    forward = splits(write_jsonl(tmp_path / "a.jsonl", names), 0.1)
    backward = splits(write_jsonl(tmp_path / "b.jsonl", names[::-1]), 0.1)
    assert forward == backward
    assert 320 <= sum(split == "heldout" for split in forward.values()) <= 480  # 400, four standard deviations


def test_bundled_prose():
    documents = read(BUNDLED)
    assert len(documents) == 1124
    assert sum(document.source_bytes for document in documents if document.split == "heldout") == 547_059
    assert sum(document.source_bytes for document in documents if document.split == "train") == 13_955_257


def test_bundled_prose_is_the_same_source_wherever_it_is_installed():
    assert os.sep not in open_corpus([BUNDLED]).sources[0].label


def test_missing_file(tmp_path):
    with pytest.raises(UserError, match=r"There is no file or folder .*nowhere\.txt"):
        open_corpus([tmp_path / "nowhere.txt"])


def test_unknown_suffix(tmp_path):
    (tmp_path / "a.csv").write_text("x")
    with pytest.raises(UserError, match=r"a.csv: unknown kind of file; widestream reads .txt, .md, .jsonl"):
        open_corpus([tmp_path / "a.csv"])


def test_folder_without_text(tmp_path):
    with pytest.raises(UserError, match="holds no file that widestream reads"):
        open_corpus([tmp_path])


def test_file_named_twice(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(UserError, match=r"a.txt is named twice"):
        open_corpus([tmp_path, tmp_path / "a.txt"])


def test_nothing_given():
    with pytest.raises(UserError, match="Nothing to read"):
        open_corpus([])


def test_unreadable_file(tmp_path):
    (tmp_path / "loop.txt").symlink_to("loop.txt")
    with pytest.raises(UserError, match=r"Cannot read .*loop.txt \(Too many levels"):
        open_corpus([tmp_path / "loop.txt"])
    (tmp_path / "gone.txt").write_text("x")
    corpus = open_corpus([tmp_path / "gone.txt"])
    (tmp_path / "gone.txt").unlink()
    with pytest.raises(UserError, match=r"Cannot read .*gone.txt \(No such file"):
        list(corpus.documents())
