"""The layers of the package: the contract holds, a new circle turns it red, the documentation draws the same ones."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = re.compile(r"[a-z_]+")


def layers():
    """The rooms of each layer, from the top down, as import-linter is told."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        contracts = tomllib.load(file)["tool"]["importlinter"]["contracts"]
    (contract,) = (contract for contract in contracts if contract["type"] == "layers")
    return [set(ROOMS.findall(layer)) for layer in contract["layers"]]


def lint(folder):
    """Import-linter on a checkout."""
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    environment = {"PYTHONPATH": str(folder / "src"), "PATH": ""}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture
def checkout(tmp_path):
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__", "bundled"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_the_picture_in_the_documentation_is_the_contract():
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    (picture,) = re.findall(r"```mermaid\n(.*?)```", page, flags=re.DOTALL)
    drawn = re.findall(r"^ *(\w+)\[\"(.*)\"\]$", picture, flags=re.MULTILINE)
    assert [set(ROOMS.findall(label)) for _, label in drawn] == layers()
    (arrows,) = re.findall(r"^ *(\w+(?: --> \w+)+)$", picture, flags=re.MULTILINE)
    assert arrows.split(" --> ") == [name for name, _ in drawn]


def test_every_room_is_described():
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    table = page.partition("| room | what is in it |")[2].partition("\n\n")[0]
    described = {name for row in re.findall(r"^\| (.*?) \|", table, flags=re.MULTILINE) for name in ROOMS.findall(row)}
    assert set.union(*layers()) <= described


def test_the_layers_hold(checkout):
    result = lint(checkout)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize(
    ("file", "line", "broken"),
    [
        ("errors.py", "import widestream.study.spec", "widestream.errors is not allowed to import widestream.study"),
        (
            "blocks/norm.py",
            "import widestream.model.decoder",
            "widestream.blocks is not allowed to import widestream.model",
        ),
        ("runs/folder.py", "import widestream.runs.read", "No cycles are allowed in widestream.runs"),
    ],
)
def test_an_import_against_the_layers_is_red(checkout, file, line, broken):
    path = checkout / "src" / "widestream" / file
    path.write_text(f"{path.read_text(encoding='utf-8')}\n{line}\n", encoding="utf-8")
    result = lint(checkout)
    assert result.returncode == 1
    assert broken in result.stdout
