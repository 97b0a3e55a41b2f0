"""Files that are not what their names say, and files of a size that is no accident."""

import bz2
import gzip
import json
import lzma
import struct
import tracemalloc

import pyarrow as pa
import pyarrow.parquet
import pytest
import zstandard
from small_corpora import texts, write_jsonl

from widestream.data.options import PrepareOptions
from widestream.data.sources import Position, open_corpus
from widestream.errors import UserError

PACK = {
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.ZstdCompressor().compress,
    ".bz2": bz2.compress,
}


def read(path, **options) -> list[str]:
    return [document.text for document in open_corpus([path], PrepareOptions(**options)).documents()]


@pytest.fixture
def lines(tmp_path) -> bytes:
    return write_jsonl(tmp_path / "lines.jsonl", texts(50)).read_bytes()


@pytest.mark.parametrize("name", ["a.json", "a.ndjson", "A.JSONL", "a.jsonl", "a.jsonl.gz", "a.json.ZST"])
@pytest.mark.parametrize("pack", [bytes, *PACK.values()])
def test_packing_is_seen_from_the_content(tmp_path, lines, name, pack):
    (tmp_path / name).write_bytes(pack(lines))
    assert read(tmp_path / name) == texts(50)


@pytest.mark.parametrize("pack", PACK.values())
def test_packed_text_is_cut_and_goes_on_from_any_piece(tmp_path, pack):
    text = "\n\n".join(texts(200))
    (tmp_path / "a.txt.gz").write_bytes(pack(text.encode()))
    corpus = open_corpus([tmp_path / "a.txt.gz"], PrepareOptions(cut=1000))
    documents = list(corpus.documents())
    assert "".join(document.text for document in documents) == text
    assert documents[-1].consumed == (tmp_path / "a.txt.gz").stat().st_size
    for index, document in enumerate(documents):
        rest = [later.text for later in corpus.documents(document.after)]
        assert rest == [later.text for later in documents[index + 1 :]]


def test_zstd_with_the_largest_window(tmp_path, lines):
    block = struct.pack("<I", 1 | len(lines) << 3)[:3] + lines
    for log, expected in ((31, None), (41, "window above 2\\^31")):
        frame = struct.pack("<I", 0xFD2FB528) + bytes([0, (log - 10) << 3]) + block
        (tmp_path / "a.jsonl.zst").write_bytes(frame)
        if expected is None:
            assert read(tmp_path / "a.jsonl.zst") == texts(50)
        else:
            with pytest.raises(UserError, match=expected):
                read(tmp_path / "a.jsonl.zst")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "text".encode("utf-16"), "is UTF-16: convert"),
        ("a.jsonl.gz", gzip.compress('{"text": "x"}'.encode("utf-16"), mtime=0), "is UTF-16: convert"),
        ("a.txt", b"version https://git-lfs.github.com/spec/v1\noid", "is a pointer of Git LFS.*git lfs pull"),
        ("a.json", b'[\n {"text": "a"},\n {"text": "b"}\n]\n', r"is JSON, but not an object a line: .*jq -c"),
        ("a.json", b'[{"text": "a"}, {"text": "b"}]', r"is JSON, but not an object a line: .*jq -c"),
        ("a.json", b'{\n "text": "a"\n}\n', r"is JSON, but not an object a line: .*jq -c"),
        ("a.jsonl.gz", b"\x1f\x8c\x08\x00\x00", "neither packed as .gz says nor text"),
    ],
)
def test_what_is_something_else_is_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        read(tmp_path / name)


def test_a_pointer_in_the_place_of_a_table(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(UserError, match="is a pointer of Git LFS"):
        read(tmp_path / "a.parquet")


def test_joined_files_may_have_byte_order_marks(tmp_path, lines):
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + lines + b"\xef\xbb\xbf" + lines)
    assert read(tmp_path / "a.jsonl") == texts(50) * 2


def test_an_integer_of_many_digits_beside_the_text(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a", "id": ' + "9" * 5000 + "}\n")
    assert read(tmp_path / "a.jsonl") == ["a"]
    (tmp_path / "a.jsonl").write_text('{"text": ' + "9" * 5000 + "}\n")
    with pytest.raises(UserError, match="line 1: the text is float"):
        read(tmp_path / "a.jsonl")


def write_long(path, pack, size):
    path.write_bytes(pack(b'{"text": "first"}\n' + b" " * size + b'{"text": "long"}\n{"text": "last"}\n'))
    return path


@pytest.mark.parametrize("suffix", ["", *PACK])
def test_a_line_above_the_limit_is_named_and_never_held(tmp_path, suffix):
    path = write_long(tmp_path / f"a.jsonl{suffix}", PACK.get(suffix, bytes), 40 << 20)
    tracemalloc.start()
    with pytest.raises(UserError, match=r"line 2 has 41,943,057 bytes, more than --max-record 1,000,000: raise"):
        read(path, max_record=10**6)
    assert read(path, max_record=10**6, skip_bad=True) == ["first", "", "last"]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # A chunk of zstd's can become 32 MiB, and is copied once.
    assert peak < (90 << 20 if suffix == ".zst" else 16 << 20)


def test_the_limit_can_be_raised(tmp_path):
    path = write_long(tmp_path / "a.jsonl.zst", PACK[".zst"], 20 << 20)
    assert read(path, max_record=1 << 26) == ["first", "long", "last"]


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz"])
def test_a_whole_text_above_the_limit(tmp_path, name):
    content = b"0123456789" * 200
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    with pytest.raises(UserError, match=r"has 2,000 bytes, more than --max-record 1,000"):
        read(tmp_path / name, cut=0, max_record=1000)
    corpus = open_corpus([tmp_path / name], PrepareOptions(cut=0, max_record=1000, skip_bad=True))
    (document,) = corpus.documents()
    assert (document.text, document.bad, document.after) == ("", 1, Position(0, 2000))
    assert list(corpus.documents(document.after)) == []
    assert "".join(read(tmp_path / name, cut=1000, max_record=1000)) == content.decode()


def test_long_rows_of_a_table(tmp_path):
    rows = [f"{i} " + "x" * (1 << 16) for i in range(200)]
    pyarrow.parquet.write_table(pa.table({"text": rows}), tmp_path / "a.parquet", row_group_size=4)
    assert read(tmp_path / "a.parquet") == rows
    with pytest.raises(UserError, match=r"row 1: the text has 65,538 bytes, more than --max-record 50,000"):
        read(tmp_path / "a.parquet", max_record=50_000, cut=0)
    pyarrow.parquet.write_table(pa.table({"text": rows}), tmp_path / "b.parquet", use_dictionary=False)
    for name, options in (("a", {"row_group_size": 200}), ("b", {"use_dictionary": False})):
        pyarrow.parquet.write_table(pa.table({"text": rows}), tmp_path / f"{name}.parquet", **options)
        with pytest.raises(
            UserError, match=r"holds 13,\d\d\d,\d\d\d bytes in one page, more than 8 times --max-record"
        ):
            read(tmp_path / f"{name}.parquet", max_record=100_000)


def test_texts_of_a_table_as_bytes(tmp_path):
    rows = [text.encode() for text in texts(40)]
    pyarrow.parquet.write_table(pa.table({"text": pa.array(rows, pa.binary())}), tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet") == texts(40)
    broken = pa.array([*rows[:3], b"ab\xff", *rows[3:]], pa.binary())
    text = pa.StringArray.from_buffers(41, *broken.buffers()[1:])
    for column in (broken, text):  # nothing makes sure that a column of strings holds UTF-8
        pyarrow.parquet.write_table(pa.table({"text": column}), tmp_path / "a.parquet")
        with pytest.raises(UserError, match=r"row 4: the text is not UTF-8 at its byte 2"):
            read(tmp_path / "a.parquet")
        assert read(tmp_path / "a.parquet", skip_bad=True) == [*texts(40)[:3], "", *texts(40)[3:]]


def test_a_column_with_a_point_in_its_name(tmp_path):
    pyarrow.parquet.write_table(pa.table({"doc.text": texts(5)}), tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet", text_field="doc.text") == texts(5)


def test_a_long_wrong_value_is_cut_short(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "a", "split": "x" * 10**6}))
    with pytest.raises(UserError, match="split is 'x") as caught:
        read(tmp_path / "a.jsonl")
    assert len(str(caught.value)) < 1000
