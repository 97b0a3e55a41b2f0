"""Every command and every piece of Python code on the pages: run where that is quick, else parsed."""

import ast
import os
import re
import shutil
import sys
import tomllib
from pathlib import Path

import pytest
import typer.main
from filelock import FileLock
from typer.testing import CliRunner

import widestream
from page_commands import (
    NOT_OURS,
    ROOT,
    RUN_BY_ITS_OWN_TEST,
    SHELL,
    Command,
    blocks,
    commands,
    inline_commands,
    pages,
    python_code,
)
from widestream.cli.app import COMMANDS, build_app
from widestream.recipe import load_recipe
from widestream.study.load import load_study
from world import make_world

WITH_BLOCKS = [page for page in pages() if any(b.language in (*SHELL, "python") or b.notes for b in blocks(page))]


def invoke(*words: str) -> str:
    """Run a command in this process; returns what it printed."""
    result = CliRunner().invoke(build_app(), list(words))
    assert result.exit_code == 0, f"widestream {' '.join(words)}\n{result.output}\n{result.exception}"
    return result.output


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """Made once, however many processes run the tests."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "world-of-pages"
    with FileLock(f"{folder}.lock"), pytest.MonkeyPatch.context() as patch:
        if not (folder / "made").exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            patch.chdir(folder)
            make_world(folder, invoke)
            (folder / "made").touch()
    return folder


@pytest.fixture
def place(world, tmp_path, monkeypatch):
    """A copy of it as the working directory, as the home folder, and for modules."""
    shutil.copytree(world, tmp_path / "place")
    monkeypatch.chdir(tmp_path / "place")
    monkeypatch.setenv("HOME", str(tmp_path / "place"))
    monkeypatch.syspath_prepend(tmp_path / "place")
    loaded = {*sys.modules}
    yield tmp_path / "place"
    for name in {*sys.modules} - loaded:  # such as forgetful.py, which another page may have in another form
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.mark.slow
@pytest.mark.parametrize("page", WITH_BLOCKS)
def test_a_page_runs_from_top_to_bottom(page, place):
    names = {}
    for block in blocks(page):
        if name := block.notes.get("file"):
            Path(name).write_text(block.code)
        elif block.language == "python" and "python" not in block.notes and page not in RUN_BY_ITS_OWN_TEST:
            exec(compile(f"{block.notes.get('before', '')}\n{block.code}", block.place, "exec"), names)
        elif block.language == "python":
            ast.parse(block.code, block.place)
            assert {*re.findall(r"\bwidestream\.([a-z_]+)\(", block.code)} <= {*widestream.__all__}, block.place
        elif block.language in SHELL:
            for command in commands(block):
                check(command)
                if not command.only_parsed:
                    invoke(*command.words[1:], *command.added)


def check(command: Command) -> None:
    """Parse a command: that it exists, with the arguments, recipe and settings that it names."""
    program, *words = command.words
    if program == "widestream":
        verb, given = parsed(command, words)
        resolve(verb, given)
    elif program == "make":
        rules = (ROOT / "Makefile").read_text()
        assert f"\n{words[0]}:" in rules, command
    elif program == "pip":
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        for word in words:
            name, bracket, extra = word.rstrip("]").partition("[")
            assert not bracket or (name == "widestream" and extra in extras), command
    elif program != "python":
        assert program in NOT_OURS, f"{command.place}: what is {program}?"
    else:
        assert words[0] == "-c" or (ROOT / words[0]).is_file(), command
        if words[0] == "-c":
            compile(words[1], command.place, "exec")


def parsed(command: Command, words: list[str]) -> tuple[str, dict]:
    """The verb of a command and what is given to it, of which nothing is carried out."""
    verb = max((verb for verb in COMMANDS if words[: len(verb.split())] == verb.split()), key=len, default=None)
    assert verb, f"{command.place}: there is no such verb: {words}"
    inner = typer.main.get_command(build_app())
    for word in verb.split():
        inner = inner.commands[word]
    rest = words[len(verb.split()) :]
    try:
        return verb, inner.make_context(verb, rest).params
    except Exception as error:  # typer has a click of its own
        raise AssertionError(f"{command.place}: {' '.join(words)}: {error}") from error


def resolve(verb: str, given: dict) -> None:
    """Find the recipes and studies that a command names, and lay its changes over them."""
    recipes = [given["recipe"]] if given.get("recipe") else given.get("recipes") or []
    for recipe in recipes:
        load_recipe("demo/rmt" if recipe.isupper() else recipe, given.get("changes") or [])
    if verb == "study run":
        for name in given["studies"]:
            load_study(name)


@pytest.mark.parametrize("page", pages())
def test_commands_in_sentences_exist(page):
    for command in inline_commands(page):
        words = list(command.words[1:])
        if words[0].startswith("-"):  # the options of widestream itself
            continue
        for each in alternatives(words):
            parse_loosely(command, each)


def alternatives(words: list[str]) -> list[list[str]]:
    """`paper errata|resources` is two commands."""
    for at, word in enumerate(words):
        if "|" in word:
            return [[*words[:at], part, *words[at + 1 :]] for part in word.split("|")]
    return [words]


def parse_loosely(command: Command, words: list[str]) -> None:
    """Verb and options exist; arguments may be left out, and words in capitals stand for values of any kind."""
    verb = max((verb for verb in COMMANDS if words[: len(verb.split())] == verb.split()), key=len, default=None)
    group = any(verb.startswith(f"{words[0]} ") for verb in COMMANDS) and len(words) == 1
    assert verb or group, f"{command.place}: there is no verb {' '.join(words)}"
    if not verb:
        return
    inner = typer.main.get_command(build_app())
    for word in verb.split():
        inner = inner.commands[word]
    known = {option for parameter in inner.params for option in (*parameter.opts, *parameter.secondary_opts)}
    options = {word.partition("=")[0] for word in words if word.startswith("--")}
    assert options <= known | {"--help"}, f"{command.place}: {verb} has no {options - known}"


def test_pages_with_a_test_of_their_own_have_it():
    for page, test in RUN_BY_ITS_OWN_TEST.items():
        assert python_code(page), page
        assert "python_code" in (ROOT / test).read_text(), test


def test_every_verb_is_on_some_page():
    told = " ".join(" ".join(command.words) for page in pages() for command in inline_commands(page))
    told += " ".join(" ".join(c.words) for p in pages() for b in blocks(p) if b.language in SHELL for c in commands(b))
    readme = (ROOT / "README.md").read_text()
    missing = [verb for verb in COMMANDS if f"widestream {verb}" not in told and verb.split()[-1] not in readme]
    assert not missing
