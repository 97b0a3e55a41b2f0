"""What a sample adds to its prompt, for tokenizers that decode a token by what stands before it."""

import json

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from widestream.data.file_tokenizer import FileTokenizer
from widestream.data.tokenizer_base import ByteTokenizer
from widestream.runs.sample import continuation

WORDS = ["[UNK]", "<|endoftext|>", "the", "miller", "walked", "▁the", "▁miller", "▁walked", "##ed", "walk", ".", "the"]


def tokenizer_of(kind):
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys(WORDS))}
    if kind == "wordpiece":
        made = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
        made.pre_tokenizer, made.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
        made.normalizer = normalizers.Lowercase()
    else:
        made = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
        made.pre_tokenizer, made.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    return made, vocabulary


@pytest.mark.parametrize("kind", ["metaspace", "wordpiece"])
def test_words_are_not_joined(kind, tmp_path):
    made, vocabulary = tokenizer_of(kind)
    made.add_special_tokens(["<|endoftext|>"])
    tokenizer = FileTokenizer(json.dumps(json.loads(made.to_str())).encode(), str(tmp_path))
    ids = [tokenizer.boundary_id, *tokenizer.encode_batch(["the miller"])[0].tolist()]
    word = "▁walked" if kind == "metaspace" else "walked"
    assert continuation(tokenizer, ids, [vocabulary[word]]) == " walked"


def test_half_a_letter_of_the_prompt_is_made_whole():
    tokenizer = ByteTokenizer()
    first, second = "é".encode()
    assert continuation(tokenizer, [256, 97, first], [second, 98]) == "éb"
    assert continuation(tokenizer, [256, *b"ab"], [*b"cd"]) == "cd"
    assert continuation(tokenizer, [256], []) == ""
