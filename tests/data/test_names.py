import os
from pathlib import Path

import pytest

from widestream.data.names import kind_of, passed_over, shown, split_of


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.txt", "text"),
        ("A.MD", "text"),
        ("a.txt.zst", "text"),
        ("c4-train.00000-of-01024.json.gz", "json"),
        ("dump.ndjson", "json"),
        ("CAPS.JSONL.GZ", "json"),
        ("a.jsonl.bz2", "json"),
        ("a.parquet", "parquet"),
        ("a.parquet.gz", None),
        ("a.csv", None),
        ("gz", None),
    ],
)
def test_kind(name, kind):
    assert kind_of(Path(name)) == kind


@pytest.mark.parametrize(
    ("label", "split"),
    [
        ("data/train-00000-of-00001.parquet", "train"),
        ("data/test-00000-of-00001.parquet", "test"),
        ("c4-validation.00000-of-00008.json.gz", "heldout"),
        ("validation/part0.jsonl", "heldout"),
        ("Dev.txt", "heldout"),
        ("en_val2.jsonl", "heldout"),
        ("testing.jsonl", "test"),
        ("test/train_sentences.txt", "test"),  # the folder goes before the name, as in `datasets`
        ("train/dev/a.txt", "heldout"),
        ("train-and-test.txt", None),
        ("latest.txt", None),
        ("developers.jsonl", None),
        ("constraint.parquet", None),
        ("évaluation.txt", None),
        ("a.txt", None),
    ],
)
def test_split(label, split):
    assert split_of(label) == split


@pytest.mark.parametrize(
    "name",
    [".git", "__MACOSX", "README.md", "readme_zh.md", "LICENSE.txt", "NOTICE.md", "dataset_infos.json", "vocab.txt"],
)
def test_what_is_not_text_to_learn_from(name):
    assert passed_over(name)


@pytest.mark.parametrize("name", ["a.txt", "readmes.jsonl", "README.jsonl", "noticeboard.txt", "config.jsonl"])
def test_what_is(name):
    assert passed_over(name) is None


def test_any_name_can_be_shown():
    assert shown(Path(os.fsdecode(b"caf\xe9.txt"))) == r"caf\xe9.txt"
    assert shown("a\x1b[31m\n東.txt") == r"a\x1b[31m\n東.txt"
