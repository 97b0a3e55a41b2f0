"""Text as it comes: whole characters, stops that are held back and left out, scores at their places."""

import pytest
import torch

from widestream.data.bpe import train_tokenizer
from widestream.data.tokenizer_base import ByteTokenizer
from widestream.generate.sampling import SamplingConfig
from widestream.runs.sample import continuation
from widestream.serve.continuing import Continuing, Decoded, prompt_scores

BYTES = ByteTokenizer()
TEXT = "Zwölf Boxkämpfer — 日本語, naïve 😀👩‍👩‍👧 and\tso on. "


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bpe")
    (folder / "text.txt").write_text(TEXT * 50)
    return [BYTES, train_tokenizer([folder / "text.txt"], 300, folder / "bpe.json", progress=False)]


def logits_for(tokenizer, token):
    """Of a model that is certain."""
    logits = torch.full((tokenizer.vocab_size,), -10.0)
    logits[token] = 10.0
    return logits


def told(tokenizer, ids, most=10**6, **how):
    """Pieces of an answer that is made of `ids`."""
    config = SamplingConfig(max_new_tokens=most, temperature=0)
    answer = Continuing(0, [tokenizer.boundary_id], config, tokenizer, **how)
    pieces = []
    for token in ids:
        if answer.done:
            break
        if (piece := answer.draw(logits_for(tokenizer, token))) is not None:
            pieces.append(piece)
    return answer, pieces


def test_pieces_are_the_text_in_whole_characters(tokenizers):
    for tokenizer in tokenizers:
        ids = tokenizer.encode_batch([TEXT])[0].tolist()
        answer, pieces = told(tokenizer, [*ids, tokenizer.boundary_id])
        assert "".join(piece.text for piece in pieces) == TEXT
        assert not any("\ufffd" in piece.text for piece in pieces)
        assert len(pieces) > 10
        assert (pieces[-1].finish, answer.count, answer.done) == ("stop", len(ids), True)


def test_any_ids_give_the_text_that_sample_gives(tokenizers):
    """Also those that are no UTF-8."""
    generator = torch.Generator().manual_seed(0)
    for tokenizer in tokenizers:
        for _ in range(30):
            ids = torch.randint(1, 256, (40,), generator=generator).tolist()
            decoded = Decoded(tokenizer, [tokenizer.boundary_id])
            text = "".join(decoded.take(token) for token in ids) + decoded.rest()
            assert text == continuation(tokenizer, [tokenizer.boundary_id], ids)


@pytest.mark.parametrize(
    ("text", "stop", "before"),
    [
        ("one two three", ("two",), "one "),
        ("one two three", ("three", "two"), "one "),
        ("aaab aab", ("aab",), "a"),
        ("ends with th", ("the",), "ends with th"),
        ("a\n\nb", ("\n\n",), "a"),
        ("ünï–x", ("–",), "ünï"),
        ("none", ("other",), "none"),
    ],
)
def test_a_stop_ends_the_text_and_none_of_it_is_told(text, stop, before):
    answer, pieces = told(BYTES, text.encode(), most=len(text.encode()), stop=stop)
    assert "".join(piece.text for piece in pieces) == before
    assert pieces[-1].finish == ("length" if before == text else "stop")
    assert [piece.finish for piece in pieces[:-1]] == [None] * (len(pieces) - 1)
    assert answer.done


def test_what_may_be_a_stop_is_held_back():
    answer, pieces = told(BYTES, b"abcabd", stop=("abx",))
    assert "".join(piece.text for piece in pieces) == "abcabd"
    answer, pieces = told(BYTES, b"abcab", stop=("abx",))
    assert "".join(piece.text for piece in pieces) == "abc"
    assert answer.end("length").text == "ab"


def test_half_a_character_at_the_end_is_shown_as_such():
    _, pieces = told(BYTES, "ä".encode()[:1], most=1)
    assert (pieces[-1].text, pieces[-1].finish) == ("\ufffd", "length")


def test_scores_stand_beside_their_tokens():
    _, pieces = told(BYTES, "aö.".encode(), most=4, logprobs=2, echoed=7)
    scores = [score for piece in pieces for score in piece.scores]
    assert [score.offset for score in scores] == [7, 8, 8, 9]
    assert [score.token for score in scores] == ["a", "\ufffd", "\ufffd", "."]
    assert all(score.logprob > -1e-3 for score in scores)
    assert all(next(iter(score.top)) == score.token for score in scores)


def test_scores_behind_a_stop_are_left_out():
    _, pieces = told(BYTES, b"ab||", most=9, stop=("||",), logprobs=0)
    scores = [score for piece in pieces for score in piece.scores]
    assert [score.token for score in scores] == ["a", "b"]
    assert scores[0].top == {}


def test_scores_of_a_prompt(tokenizers):
    for tokenizer in tokenizers:
        ids = tokenizer.encode_batch([TEXT])[0].tolist()
        logs = [None, *(torch.zeros(tokenizer.vocab_size).log_softmax(-1) for _ in ids[1:])]
        scores = prompt_scores(tokenizer, ids, logs, 1)
        assert scores[0].logprob is None
        assert scores[0].top is None
        assert scores[1].logprob == pytest.approx(float(-torch.tensor(float(tokenizer.vocab_size)).log()))
        assert scores[-1].offset == len(TEXT) - len(tokenizer.decode(ids[-1:]))
