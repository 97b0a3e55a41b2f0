"""The commands and the code on the pages: where they stand, and how much of them a test can run.

Every fenced block of `sh`, `console` or `python` is run by tests/docs/, page by page and in order, in a folder with a
small corpus and a few small runs. A comment in front of a block says where that would take too long or need what a
test does not have:

    <!-- tested
    train: train.steps=2                 put behind every command that begins with these words
    zoo: only parsed, forty minutes      parsed, but not run, and why
    python: only parsed, ...             the same for the code of a block
    before: tokens = ...                 code that runs before the block's own
    file: forgetful.py                   the block is not run, but is this file
    -->

Parsed means: the verb, its arguments and options exist, and so do recipe and settings that it names.
"""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RUN_BY_ITS_OWN_TEST = {
    "docs/how-to/your-own-model.md": "tests/host/test_your_own_model_page.py",
    "docs/reference/python.md": "tests/runs/test_opened.py",
}
"""Pages whose Python code another test runs, with more to say about its results."""
NOT_OURS = {
    "make": "sets up an environment of its own",
    "pip": "changes the environment",
    "python": "runs in tests of its own",
    "curl": "asks a server",
    "tensorboard": "serves until it is stopped",
    "trackio": "serves until it is stopped",
}
"""Programs that are never run by the tests of pages, and why."""

_COMMENT = re.compile(r"<!-- tested\n((?:(?!-->).)*)-->\n\Z", re.DOTALL)
_BLOCK = re.compile(r"^```(\w+)[^\n]*\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_VARIABLE = re.compile(r"[A-Z_]+=")
_INLINE = re.compile(r"(?<!`)`(widestream [^`]+)`(?!`)")
ONLY_PARSED = "only parsed, "
SHELL = ("sh", "console")
"""Languages of blocks of commands."""


@dataclass(frozen=True, kw_only=True)
class Block:
    """A fenced block of a page."""

    page: str
    """Path in the repository."""
    line: int
    """Of its fence, from 1."""
    language: str
    code: str
    notes: dict[str, str]
    """What the comment in front of it says."""

    @property
    def place(self) -> str:
        """Page and line."""
        return f"{self.page}:{self.line}"


@dataclass(frozen=True, kw_only=True)
class Command:
    """One command of a shell block."""

    place: str
    words: tuple[str, ...]
    added: tuple[str, ...] = ()
    """What a test puts behind it."""
    only_parsed: str = ""
    """Why it is not run; empty where it is."""


def pages() -> list[str]:
    """All pages, as paths in the repository."""
    return ["README.md", *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md"))]


def blocks(page: str) -> list[Block]:
    """The fenced blocks of a page."""
    text = (ROOT / page).read_text(encoding="utf-8")
    found = []
    for match in _BLOCK.finditer(text):
        comment = _COMMENT.search(text, 0, match.start())
        line = text.count("\n", 0, match.start()) + 1
        notes = _notes(comment[1], f"{page}:{line}") if comment else {}
        found.append(Block(page=page, line=line, language=match[1], code=match[2], notes=notes))
    return found


def _notes(comment: str, place: str) -> dict[str, str]:
    notes: dict[str, str] = {}
    for line in comment.strip().splitlines():
        key, colon, value = line.partition(": ")
        assert colon, f"{place}: the line {line!r} of the comment has no colon."
        notes[key.strip()] = "\n".join([notes[key], value]) if key in notes else value.strip()
    return notes


def python_code(page: str) -> list[str]:
    """The blocks of Python code of a page that stand there to be run."""
    return [
        "\n".join([*([before] if (before := block.notes.get("before")) else []), block.code])
        for block in blocks(page)
        if block.language == "python" and not {"file", "python"} & {*block.notes}
    ]


def commands(block: Block) -> list[Command]:
    """The commands of a shell block, one for every line (or part of a line, between `&&`)."""
    text = block.code.replace("\\\n", " ")
    lines = [line.removeprefix("$ ") for line in text.splitlines()]
    if block.language == "console":  # other lines are what a command prints
        lines = [line.removeprefix("$ ") for line in text.splitlines() if line.startswith("$ ")]
    found = []
    for line in lines:
        words = shlex.split(line, comments=True)
        while words:
            end = words.index("&&") if "&&" in words else len(words)
            found.append(_command(block, tuple(words[:end])))
            words = words[end + 1 :]
    unused = {*block.notes} - {key for command in found for key in block.notes if _begins(command.words, key)}
    assert not unused, f"{block.place}: no command of the block begins with {unused}."
    return found


def _command(block: Block, words: tuple[str, ...]) -> Command:
    while _VARIABLE.match(words[0]):  # set for the command alone
        words = words[1:]
    launched = ""
    if words[0] == "torchrun":
        words = ("widestream", *words[words.index("widestream") + 1 :])
        launched = "needs a launcher and several processes, which tests/train/test_parallel_training.py starts"
    notes = sorted((key for key in block.notes if _begins(words, key)), key=len)
    note = block.notes[notes[-1]] if notes else ""
    reason = note.removeprefix(ONLY_PARSED) if note.startswith(ONLY_PARSED) else launched or NOT_OURS.get(words[0], "")
    added = () if reason else tuple(shlex.split(note))
    return Command(place=block.place, words=words, added=added, only_parsed=reason)


def _begins(words: tuple[str, ...], key: str) -> bool:
    ours = words[1:] if words[0] == "widestream" else words
    return ours[: len(key.split())] == tuple(key.split())


def inline_commands(page: str) -> list[Command]:
    """Commands that a sentence names: `widestream train RECIPE`; to be parsed, with words in capitals for anything."""
    text = (ROOT / page).read_text(encoding="utf-8")
    text = _BLOCK.sub(lambda block: "\n" * block[0].count("\n"), text)
    return [
        Command(
            place=f"{page}:{text.count(chr(10), 0, match.start()) + 1}",
            words=tuple(word for word in shlex.split(match[1].replace("\n", " ")) if word != "..."),
            only_parsed="in a sentence",
        )
        for match in _INLINE.finditer(text)
    ]
