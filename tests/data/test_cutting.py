import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from widestream.data.cutting import read_pieces
from widestream.data.options import PrepareOptions
from widestream.data.sources import Corpus, Position, Source
from widestream.errors import UserError

TEXT = ["a", "word", " ", "\n", "\n\n", "\r\n\r\n", "é", "東", "😀", "\ufeff", "a longer line without an end. "]
BROKEN = [b"\xff", b"\x80", b"\xe6\x9d", b"\xf0\x9f\x98", b"\xc0\xaf", b"\xed\xa0\x80"]
PLACES = [b"\n\n", b"\n\r\n"], [b"\n"], [b" "]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("cutting") / "a.txt"


def pieces(path, data: bytes, cut: int, start: int = 0) -> list[tuple[str, int]]:
    path.write_bytes(data)
    source = Source(str(path), str(path), path.name, len(data), 0)
    documents = Corpus(sources=(source,), passed_over=(), options=PrepareOptions(cut=cut)).documents(Position(0, start))
    return [(document.text, document.after.offset) for document in documents]


@given(st.lists(st.sampled_from(TEXT), max_size=60).map("".join), st.integers(16, 64))
def test_pieces_are_the_text_and_none_is_longer_than_the_cut(path, text, cut):
    data = text.encode()
    found = pieces(path, data, cut)
    assert "".join(piece for piece, _ in found) == data.decode("utf-8-sig")
    assert all(piece for piece, _ in found) or text in ("", "\ufeff")
    ends = [0, *(end for _, end in found)]
    assert ends[-1] == max(1, len(data))
    for (piece, end), start in zip(found, ends, strict=False):
        assert data[start:end].decode("utf-8-sig" if start == 0 else "utf-8") == piece
        assert end - start <= cut
        assert pieces(path, data, cut, end) == [later for later in found if later[1] > end]


@given(st.lists(st.sampled_from(TEXT), max_size=60).map("".join), st.integers(16, 64))
def test_the_best_place_in_the_second_half_is_taken(path, text, cut):
    data, start = text.encode(), 0
    for _, end in pieces(path, data, cut)[:-1]:
        second_half = data[start + cut // 2 : start + cut]
        best = next((marks for marks in PLACES if any(mark in second_half for mark in marks)), None)
        if best is None:
            assert end - start >= cut - 3
        else:
            assert data[:end].endswith(tuple(best))
            rest = data[end - len(best[0]) + 1 : start + cut]
            assert not any(mark in rest for mark in best)
        start = end


@given(
    st.lists(st.sampled_from([*(text.encode() for text in TEXT), *BROKEN]), max_size=60).map(b"".join),
    st.integers(16, 64),
)
def test_invalid_utf8_is_reported_where_it_is_wherever_the_cuts_are(path, data, cut):
    try:
        expected = data.decode()
    except UnicodeDecodeError as error:
        with pytest.raises(UserError, match=rf"a\.txt is not UTF-8 at byte {error.start}(: convert| .and on)"):
            pieces(path, data, cut)
    else:
        assert "".join(piece for piece, _ in pieces(path, data, cut)) == expected.removeprefix("\ufeff")


@pytest.mark.parametrize("shift", range(4))
def test_characters_across_the_cut_stay_whole(path, shift):
    text = "x" * shift + "😀" * 100_000
    found = pieces(path, text.encode(), 100_000)
    assert "".join(piece for piece, _ in found) == text
    assert len(found) == 5 if shift else 4


@pytest.mark.parametrize("cut", [0, 16, 1000, 10**7])
def test_short_and_empty_files(path, cut):
    assert pieces(path, b"", cut) == [("", 1)]
    assert pieces(path, b"no end \n\n ", cut) == [("no end \n\n ", 10)]
    assert pieces(path, b"sixteen letters.", cut) == [("sixteen letters.", 16)]


def test_a_long_file_is_never_held_in_memory(path):
    path.write_text("line after line\n" * 1_000_000)
    tracemalloc.start()
    with path.open("rb") as file:
        count = sum(1 for _ in read_pieces(file, 0, 100_000))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count >= 160
    assert peak < 600_000
