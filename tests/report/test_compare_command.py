import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fake_runs import write_demo, write_search
from widestream.cli.app import build_app
from widestream.errors import UserError


def run(*arguments):
    return CliRunner().invoke(build_app(), ["compare", *map(str, arguments)])


def test_the_table_and_the_verdict_are_printed_without_colour_codes_into_a_pipe(demo):
    result = run(demo)
    assert result.exit_code == 0
    assert "\x1b" not in result.output
    assert "transformer" in result.output
    assert "At equal tokens rmt's held-out loss is" in result.output
    assert "This looks 6.96M tokens into training" in result.output
    assert "…" not in result.output, "no cell is cut"


def test_json_is_the_only_thing_printed(demo):
    assert json.loads(run(demo, "--json").output)["metric"] == "loss"


def test_out_writes_the_report(demo, here):
    result = run(demo, "--out", "report.html", "--search", write_search(here / "s.json"))
    assert result.output.rstrip().endswith("Report: report.html")
    assert "Learning-rate search" in Path("report.html").read_text()


def test_paths_are_shown_as_given(here):
    write_demo(here / "runs", steps=50)
    run("runs", "--out", "report.html")
    text = Path("report.html").read_text()
    assert ">runs/rmt-seed0</th>" in text
    assert str(here) not in text
    assert "widestream train runs/rmt-seed0/config.yaml" in text


def test_what_is_no_run_is_a_user_error(here):
    result = run(here)
    assert isinstance(result.exception, UserError)


@pytest.mark.parametrize("lines", ["from widestream import report", "import widestream.cli.compare"])
def test_importing_needs_no_torch(lines, demo):
    heavy = {"torch", "numpy", "tokenizers", "jinja2"}
    code = f"import sys\n{lines}\nassert not {heavy} & set(sys.modules), 'too much'"
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ)


def test_comparing_needs_no_torch(demo):
    code = f"""
import sys
from widestream import report
report.print_table(report.compare([{str(demo)!r}]))
assert "torch" not in sys.modules
"""
    told = subprocess.run([sys.executable, "-c", code], check=True, env=os.environ, capture_output=True, text=True)
    assert "Resources to reach the other's best loss" in told.stdout
