"""What must not cost time: importing the package, and asking for help."""

import subprocess
import sys
from importlib.metadata import entry_points

import pytest

HEAVY = {"torch", "numpy", "tokenizers", "pyarrow"}


def modules_after(code: str) -> set[str]:
    script = f"{code}\nimport sys; print('MODULES', *sys.modules)"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(result.stdout.partition("MODULES")[2].split())


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["train", "--help"], ["data", "prepare", "--help"], ["bench", "decode", "--help"], ["--version"]],
)
def test_help_imports_nothing_heavy(arguments):
    run = "from widestream.cli import main\ntry: main()\nexcept SystemExit: pass"
    loaded = modules_after(f"import sys; sys.argv = ['widestream', *{arguments}]\n{run}")
    assert "widestream.cli.app" in loaded
    assert loaded.isdisjoint(HEAVY)


def test_reading_recipes_imports_no_optional_package():
    loaded = modules_after("from widestream.recipe import load_recipe; load_recipe('paper/rmt-134m')")
    assert loaded.isdisjoint({"tokenizers", "pyarrow", "typer", "rich", "pydantic"})


def test_the_command_is_installed():
    assert any(point.name == "widestream" for point in entry_points(group="console_scripts"))


@pytest.mark.parametrize("arguments", [["no-such-verb"], ["train"], ["train", "paper/rmt-135m"], ["summary", "x=1"]])
def test_mistakes_exit_with_2_and_no_traceback(arguments):
    result = subprocess.run(
        [sys.executable, "-m", "widestream", *arguments], capture_output=True, text=True, check=False
    )
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    assert result.stderr.strip()
