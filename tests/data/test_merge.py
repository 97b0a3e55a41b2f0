"""Parts that were prepared by separate jobs, joined: the same as one preparation of everything."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from small_corpora import contents, texts, write_jsonl

from widestream.data import merge as merge_module
from widestream.data.bpe import train_tokenizer
from widestream.data.inspection import inspect_folder
from widestream.data.manifest import read_manifest
from widestream.data.merge import merge
from widestream.data.options import parse_part
from widestream.data.prepare import PrepareOptions, prepare
from widestream.data.sources import open_corpus
from widestream.data.store import TokenStore
from widestream.data.tokenizer import ByteTokenizer
from widestream.errors import UserError

OPTIONS = PrepareOptions(heldout=0.1, shard_tokens=4000)
PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "data.md"


@pytest.fixture
def source(tmp_path):
    """Seven files of unequal length, one of them of empty documents."""
    folder = tmp_path / "texts"
    folder.mkdir()
    everything = texts(280)
    for number, (start, stop) in enumerate(pairwise([0, 5, 100, 110, 150, 151, 280])):
        write_jsonl(folder / f"{number}.jsonl", everything[start:stop])
    write_jsonl(folder / "7.jsonl", ["", ""])
    return folder


def make(source, out, part=None, tokenizer=None, **options):
    options = replace(OPTIONS, part=part, **options)
    return prepare([source], out, tokenizer or ByteTokenizer(), options, workers=1, progress=False)


def make_parts(source, folder, count=3, **options):
    """All parts, made in an order that is not theirs."""
    numbers = [*range(2, count + 1), 1]
    for number in numbers:
        make(source, folder / f"part{number}", (number, count), **options)
    return [folder / f"part{number}" for number in numbers]


def documents(folder, split):
    store = TokenStore.open(folder, split, verify=True)
    return [bytes(store.document(number).tolist()).decode() for number in range(store.documents)]


@pytest.mark.parametrize("count", [1, 3, 7])
def test_merged_parts_are_one_preparation(source, tmp_path, count):
    whole = make(source, tmp_path / "whole")
    merged = merge(make_parts(source, tmp_path, count), tmp_path / "merged")
    for split in ("train", "heldout"):
        assert documents(tmp_path / "merged", split) == documents(tmp_path / "whole", split)
        assert [shard.file for shard in merged.splits[split].shards][:2] == [
            f"{split}_{i:05d}.bin" for i in range(min(2, len(merged.splits[split].shards)))
        ]
    raw, expected = (json.loads(manifest.to_json()) for manifest in (merged, whole))
    for manifest in (raw, expected):  # where shards end is all that may differ
        for split in manifest["splits"].values():
            split["shards"] = None
    assert raw == expected
    assert raw["empty_documents"] == 2
    assert make(source, tmp_path / "merged") == merged  # found to be prepared already
    assert inspect_folder(tmp_path / "merged", 1, verify=True)["splits"]["train"]["documents"] > 200
    assert {path.name for path in tmp_path.iterdir() if "merged" in path.name} == {"merged"}


def test_parts_hold_out_what_the_whole_does_where_that_is_one_document(tmp_path):
    """With a small fraction the document with the smallest hash is held out, and parts have to agree on it."""
    (tmp_path / "texts").mkdir()
    for number in range(4):
        write_jsonl(tmp_path / "texts" / f"{number}.jsonl", texts(6, seed=number))
    make(tmp_path / "texts", tmp_path / "whole", heldout=1e-9)
    parts = make_parts(tmp_path / "texts", tmp_path, 4, heldout=1e-9)
    assert sorted("heldout" in read_manifest(part).splits for part in parts) == [False, False, False, True]
    merge(parts, tmp_path / "merged")
    assert documents(tmp_path / "merged", "heldout") == documents(tmp_path / "whole", "heldout")


@pytest.mark.parametrize("parts", [1, 2, 3, 5, 40])
def test_every_file_is_in_one_part_and_parts_are_of_like_size(tmp_path, parts):
    for number in range(40):
        (tmp_path / f"{number:02d}.txt").write_text("x" * (1 + number * 37 % 100))
    options = [PrepareOptions(part=(number, parts)) for number in range(1, parts + 1)]
    read = [open_corpus([tmp_path], option).read for option in options]
    assert [source for part in read for source in part] == list(open_corpus([tmp_path]).sources)
    sizes = [sum(source.size or 0 for source in part) for part in read]
    assert min(sizes) > 0
    assert parts == 40 or max(sizes) < 1.2 * sum(sizes) / parts + 100


def test_one_huge_file_leaves_no_part_empty(tmp_path):
    for number, size in enumerate([1, 1, 100_000, 1, 1]):
        (tmp_path / f"{number}.txt").write_text("x" * size)
    for parts in range(1, 6):
        spans = [open_corpus([tmp_path], PrepareOptions(part=(i, parts))).span for i in range(1, parts + 1)]
        assert [index for span in spans for index in span] == list(range(5))
        assert all(spans)
    with pytest.raises(UserError, match=r"there are 5 files, .*at most 5 parts"):
        open_corpus([tmp_path], PrepareOptions(part=(1, 6)))


def test_a_part_reads_no_other_files_but_to_find_the_first_held_out(source, tmp_path):
    (source / "6.jsonl").write_text("this is not JSON\n")
    make(source, tmp_path / "out", (1, 3))
    with pytest.raises(UserError, match=r"6.jsonl, line 1"):
        make(source, tmp_path / "last", (3, 3))


@pytest.mark.parametrize("text", ["3", "a/b", "1/2/3", "-1/3", "1.5/2", "", "/"])
def test_what_is_no_part(text):
    with pytest.raises(UserError, match=r"--part is .*such as 3/8"):
        parse_part(text)


@pytest.mark.parametrize("part", [(0, 3), (4, 3), (0, 0)])
def test_parts_that_there_cannot_be(part):
    with pytest.raises(UserError, match=r"--part is .*n/n"):
        PrepareOptions(part=part)
    assert parse_part("3/8") == (3, 8)


def test_parts_must_be_complete(source, tmp_path):
    parts = make_parts(source, tmp_path, 4)
    with pytest.raises(UserError, match=r"2 of 4 parts missing: 1/4, 3/4; "):
        merge([tmp_path / "part2", tmp_path / "part4"], tmp_path / "merged")
    with pytest.raises(UserError, match=r"part2 and .*part2 are both part 2 of 4"):
        merge([*parts, tmp_path / "part2"], tmp_path / "merged")
    make(source, tmp_path / "whole")
    with pytest.raises(UserError, match="whole is no part"):
        merge([tmp_path / "whole"], tmp_path / "merged")
    make(source, tmp_path / "third", (3, 5))
    with pytest.raises(UserError, match=r"third is a part of 5 and .*part2 of 4"):
        merge([tmp_path / "part2", tmp_path / "third"], tmp_path / "merged")
    assert not list(tmp_path.glob("merged*"))
    manifest = tmp_path / "part2" / "manifest.json"
    described = json.loads(manifest.read_text())
    described["settings"]["part"] = [2, 10**9]
    manifest.write_text(json.dumps(described))
    with pytest.raises(UserError, match=r"999999999 of 1000000000 parts missing: 1/1000000000, 3/.*, \.\.\.; "):
        merge([tmp_path / "part2"], tmp_path / "merged")


def test_parts_must_belong_together(source, tmp_path):
    parts = make_parts(source, tmp_path, 2)
    tokenizer = train_tokenizer([source], 300, tmp_path / "bpe.json", progress=False)
    for name, change in {
        "tokenizer": {"tokenizer": tokenizer},
        "--heldout": {"heldout": 0.2},
        "--shard-tokens": {"shard_tokens": 5000},
    }.items():
        make(source, tmp_path / name, (2, 2), **change)
        with pytest.raises(UserError, match=f"{name} was prepared with different {name} than"):
            merge([parts[1], tmp_path / name], tmp_path / "merged")
    write_jsonl(source / "8.jsonl", ["more"])
    make(source, tmp_path / "later", (2, 2))
    with pytest.raises(UserError, match="later was prepared with different sources"):
        merge([parts[1], tmp_path / "later"], tmp_path / "merged")
    assert not list(tmp_path.glob("merged*"))


def test_bad_records_may_be_passed_over_in_the_part_that_has_them(source, tmp_path):
    with (source / "6.jsonl").open("a") as file:
        file.write("this is not JSON\n")
    make(source, tmp_path / "1", (1, 2))
    make(source, tmp_path / "2", (2, 2), skip_bad=True)
    merged = merge([tmp_path / "1", tmp_path / "2"], tmp_path / "merged")
    assert (merged.skipped.records, merged.settings["skip_bad"]) == (1, True)
    assert merged.skipped == make(source, tmp_path / "whole", skip_bad=True).skipped


def test_a_shard_of_another_size_is_found(source, tmp_path):
    parts = make_parts(source, tmp_path, 2)
    with (tmp_path / "part1" / "train_00000.bin").open("ab") as file:
        file.write(b"\0\0")
    with pytest.raises(UserError, match=r"part1/train_00000.bin has \d+ bytes"):
        merge(parts, tmp_path / "merged")
    assert not list(tmp_path.glob("merged*"))


@pytest.mark.parametrize("links", [True, False])
def test_shards_are_linked_or_copied_and_outlive_the_parts(source, tmp_path, monkeypatch, links):
    def no_links(*paths):
        raise OSError(18, "Invalid cross-device link")

    parts = make_parts(source, tmp_path, 2)
    if not links:
        monkeypatch.setattr(Path, "hardlink_to", no_links)
    merge(parts, tmp_path / "merged")
    one, other = tmp_path / "part1" / "train_00000.bin", tmp_path / "merged" / "train_00000.bin"
    assert one.read_bytes() == other.read_bytes()
    assert one.samefile(other) == links
    for part in parts:
        for path in part.iterdir():
            path.unlink()
    TokenStore.open(tmp_path / "merged", "train", verify=True)


@pytest.mark.parametrize("after", [0, 3, 7])
def test_killed_on_its_way_it_leaves_no_half_folder(source, tmp_path, monkeypatch, after):
    parts = make_parts(source, tmp_path)
    merge(parts, tmp_path / "expected")
    bring, brought = merge_module._bring, []

    def stop(old, new):
        if len(brought) == after:
            raise KeyboardInterrupt
        brought.append(new)
        bring(old, new)

    monkeypatch.setattr(merge_module, "_bring", stop)
    with pytest.raises(KeyboardInterrupt):
        merge(parts, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()
    monkeypatch.setattr(merge_module, "_bring", bring)
    merge(parts, tmp_path / "merged")
    assert contents(tmp_path / "merged") == contents(tmp_path / "expected")


def test_what_another_command_began_is_not_thrown_away(source, tmp_path):
    parts = make_parts(source, tmp_path)
    half = tmp_path / "merged.preparing"
    half.mkdir()
    (half / "progress.json").write_text("{}")
    with pytest.raises(UserError, match="holds what another command began"):
        merge(parts, tmp_path / "merged")
    assert contents(half) == {"progress.json": b"{}"}
    merge(parts, tmp_path / "merged", overwrite=True)
    assert not half.exists()


def test_the_slurm_script_of_the_page(source, tmp_path):
    script = re.search(r"```bash\n(#!/bin/bash\n#SBATCH.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert script is not None
    (tmp_path / "prepare.sh").write_text(script[1])
    source.rename(tmp_path / "my_texts")
    tokenizer = train_tokenizer([tmp_path / "my_texts"], 300, tmp_path / "bpe.json", progress=False)
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "widestream").write_text(f'#!/bin/sh\nexec {sys.executable} -m widestream "$@"\n')
    (folder / "widestream").chmod(0o755)
    env = os.environ | {"PATH": f"{folder}:{os.environ['PATH']}"}
    assert "--array=1-4\n" in script[1]
    for number in "3142":
        env["SLURM_ARRAY_TASK_ID"] = number
        subprocess.run(["bash", "prepare.sh"], cwd=tmp_path, env=env, check=True, capture_output=True)
    merged = merge(list((tmp_path / "parts").iterdir()), tmp_path / "merged")
    prepare([tmp_path / "my_texts"], tmp_path / "whole", tokenizer, progress=False)
    for split in merged.splits:
        one, other = (TokenStore.open(tmp_path / name, split, verify=True) for name in ("merged", "whole"))
        assert one.window(0, one.tokens)[0].tolist() == other.window(0, other.tokens)[0].tolist()
