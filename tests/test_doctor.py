"""`widestream doctor`: what is here is found, what is missing comes with what to do."""

import json

import pytest
from typer.testing import CliRunner

from widestream import doctor
from widestream.cli.app import build_app
from widestream.kernels import compiled


def run(*arguments):
    done = CliRunner().invoke(build_app(), ["doctor", *arguments])
    assert done.exit_code == 0, done.output
    return done.output


def test_all_parts_are_looked_at_and_json_says_the_same():
    rows = json.loads(run("--json"))
    assert [row["part"] for row in rows] == sorted(
        (row["part"] for row in rows), key=["versions", "machine", "kernels", "extras", "files"].index
    )
    found = {row["name"]: row for row in rows}
    assert found["exchange (C++)"]["found"] == "compiled"
    assert found["optuna (widestream tune)"]["fine"]
    text = run()
    assert all(name in text for name in found)


def test_what_is_missing_comes_with_what_to_do(monkeypatch, tmp_path):
    versions = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda package: None if package == "optuna" else versions(package))
    monkeypatch.setattr(compiled, "_compiler", no_compiler)
    monkeypatch.setenv("WIDESTREAM_CACHE", str(tmp_path))
    for module in (doctor.exchange_cpu, doctor.gelu_cpu):
        monkeypatch.delitem(module.KERNEL.__dict__, "entry", raising=False)
    found = {finding.name: finding for finding in doctor.examine()}
    assert found["optuna (widestream tune)"].remedy == "pip install 'widestream[tune]'"
    exchange = found["exchange (C++)"]
    assert not exchange.fine
    assert exchange.found == "There is no compiler."
    assert "g++" in exchange.remedy
    assert found["compiled kernels"].found == str(tmp_path)


def no_compiler():
    raise compiled.BuildError("There is no compiler.")


@pytest.mark.parametrize("extra", doctor.EXTRAS)
def test_extras_are_those_of_the_package(extra):
    import tomllib
    from pathlib import Path

    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
    listed = {line.partition(">")[0] for line in project["optional-dependencies"][extra]}
    assert {doctor.NAMES.get(name, name) for name in doctor.EXTRAS[extra]} == listed
    assert {*doctor.EXTRAS} == {*project["optional-dependencies"]} - {"dev"}
