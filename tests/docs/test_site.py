"""How pages become pages of the site. Building it, which checks links, is a step of its own in `make test`."""

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import pictures
from api_page import api_page
from build_site import CONTENTS, GENERATED, WRITTEN, for_site
from page_commands import ROOT, blocks, commands, pages
from recipe_page import recipe_page
from repository_files import linked_files
from widestream import __all__ as public
from widestream import lens
from widestream.recipe import RunConfig
from widestream.recipe.kinds import OWN_KINDS, load_kind
from widestream.streams.matrix.rmt import MatrixBase


def test_links_lead_where_they_do_in_the_repository():
    text = "[a](../architecture.md#layers) [b](../../src/widestream/errors.py) [c](../../README.md#the-verbs) [d](#x)"
    assert for_site(text, "docs/how-to/page.md", "how-to/page.md") == (
        "[a](../architecture.md#layers) [b](../files/src/widestream/errors.py.md) [c](../index.md#the-verbs) [d](#x)"
    )
    assert for_site("[a](docs/errata.md)", "README.md", "index.md") == "[a](errata.md)"
    assert for_site("[a](nowhere.md)", "docs/errata.md", "errata.md") == "[a](nowhere.md)"  # for Sphinx to complain of


def test_files_that_shown_files_link_to_are_shown_too():
    found = linked_files(ROOT, [ROOT / "docs" / "findings.md"], taken=set())
    assert "lab/2026-11-22-demo.md" in found
    assert not [path for path in found if path.startswith("docs/")]


def test_a_picture_of_two_themes_becomes_two_images():
    picture = '<picture>\n<source srcset="a-dark.svg">\n<img src="a-light.svg" alt="What it shows">\n</picture>'
    assert for_site(picture, "README.md", "index.md") == (
        "![What it shows](a-light.svg){.only-light}\n![What it shows](a-dark.svg){.only-dark}"
    )


def test_every_page_is_in_the_list_once():
    listed = [page for rows in CONTENTS.values() for page in rows.values()]
    there = {page.removeprefix("docs/") for page in pages() if page.startswith("docs/")} | {*GENERATED, *WRITTEN}
    assert sorted(f"{page}.md" for page in listed) == sorted(there - {"index.md"})


def test_every_setting_is_in_the_reference():
    page = recipe_page()
    for kind in OWN_KINDS:
        assert f"### `{kind}`" in page
        for field in dataclasses.fields(load_kind(kind).Config):
            assert field.name == "kind" or f"| `model.stream.{field.name}` |" in page
    for section in ("", "train.", "optimizer.muon.", "model.mup.", "model.moe."):
        assert f"| `{section}" in page
    for field in dataclasses.fields(RunConfig):
        assert f"| `{field.name}` |" in page
    assert "| `train.steps` | int or null | `null` | Optimizer steps. Give this or `tokens`. |" in page


def test_every_public_name_is_in_the_reference():
    names = {*public} - {"__version__"} | {f"lens.{name}" for name in lens.__all__}
    assert {*re.findall(r":: widestream\.([\w.]+)", api_page())} == names


def test_the_pictures_are_what_the_script_draws():
    for path, text in pictures.files().items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name}: run python website/pictures.py"


def test_the_pictures_show_what_the_stream_computes():
    made = pictures.example()
    keys, data = (
        torch.from_numpy(made.keys.T.copy()),
        torch.from_numpy(made.data.T.copy())[None, None],
    )  # [K, R], [.., V, R]
    state = MatrixBase.store(None, keys, data)  # pyright: ignore
    normed = torch.nn.functional.layer_norm(state, state.shape[-2:], eps=1e-6)
    read = MatrixBase.retrieve(None, keys.T[:1], normed)  # pyright: ignore
    np.testing.assert_allclose(state[0, 0].T, made.state, atol=1e-12)
    np.testing.assert_allclose(normed[0, 0].T, made.normed, atol=1e-6)
    np.testing.assert_allclose(read[0, 0, :, 0], made.read, atol=1e-6)
    assert np.corrcoef(made.read, made.data[0])[0, 1] > 0.9  # nearly what had been stored, as the page says


@pytest.mark.parametrize(
    ("comment", "words"),
    [
        ("train: train.steps=2", ("train.steps=2",)),
        ("train demo/rmt: train.steps=3\ntrain: train.steps=2", ("train.steps=3",)),
        ("train: only parsed, it takes a day", ()),
    ],
)
def test_what_a_comment_says_of_a_command(tmp_path, monkeypatch, comment, words):
    page = tmp_path / "page.md"
    page.write_text(
        f"<!-- tested\nother: x\n-->\n\n<!-- tested\n{comment}\n-->\n```sh\nwidestream train demo/rmt\n```\n"
    )
    monkeypatch.setattr("page_commands.ROOT", Path(tmp_path))
    (block,) = blocks("page.md")
    (command,) = commands(block)
    assert command.added == words
    assert bool(command.only_parsed) == ("only parsed" in comment)


def test_a_comment_that_fits_no_command_is_refused(tmp_path, monkeypatch):
    (tmp_path / "page.md").write_text("<!-- tested\nsample: --tokens 5\n-->\n```sh\nwidestream train demo/rmt\n```\n")
    monkeypatch.setattr("page_commands.ROOT", Path(tmp_path))
    with pytest.raises(AssertionError, match="no command of the block begins with"):
        commands(blocks("page.md")[0])
