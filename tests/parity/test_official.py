"""The golden cases, and that the checker notices what is wrong."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from check_official import main

HERE = Path(__file__).parent
CASES = ("rmt_mup", "rmt_zero_init", "transformer_mup")


def copy_case(name: str, folder: Path) -> Path:
    for suffix in (".json", ".safetensors"):
        shutil.copy(HERE / "golden" / f"{name}{suffix}", folder)
    return folder / f"{name}.safetensors"


def test_published_code_is_matched():
    command = [sys.executable, str(HERE / "check_official.py"), str(HERE / "golden")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "3 of 3 cases match" in result.stdout
    for case in CASES:
        for quantity in ("logits", "cross-entropy", "loss", "gradient", "parameter"):
            assert any(line.split()[:2] == [case, quantity] for line in result.stdout.splitlines())


@pytest.mark.parametrize("prefix", ["logits", "grad/", "param_after_3_steps/"])
def test_a_wrong_number_is_a_miss(tmp_path, prefix, capsys):
    path = copy_case("rmt_mup", tmp_path)
    tensors = load_file(path)
    key = next(key for key, value in sorted(tensors.items()) if key.startswith(prefix) and value.norm() > 0)
    tensors[key] = tensors[key] * 1.001
    save_file(tensors, path)
    assert main([str(tmp_path)]) == 1
    assert capsys.readouterr().out.count("MISS") == 1


def test_logits_that_should_be_zero_are_compared_too(tmp_path):
    path = copy_case("rmt_zero_init", tmp_path)
    tensors = load_file(path)
    assert tensors["logits"].norm() == 0
    tensors["logits"][0, 0, 0] = 1.0
    save_file(tensors, path)
    assert main([str(tmp_path)]) == 1


def test_axes_are_taken_by_name(tmp_path):
    """A case that stores a parameter's axes in another order is the same case."""
    path = copy_case("rmt_mup", tmp_path)
    meta = json.loads(path.with_suffix(".json").read_text())
    tensors = load_file(path)
    key = "unembedding.param.weight"
    meta["axes"][key].reverse()
    for prefix in ("param", "grad", "param_after_3_steps"):
        tensors[f"{prefix}/{key}"] = tensors[f"{prefix}/{key}"].permute(2, 1, 0).contiguous()
    path.with_suffix(".json").write_text(json.dumps(meta))
    save_file(tensors, path)
    assert main([str(tmp_path)]) == 0


def test_unknown_kinds_are_said_not_failed(tmp_path, capsys):
    path = copy_case("rmt_zero_init", tmp_path)
    shutil.copy(path, tmp_path / "other.safetensors")
    (tmp_path / "other.json").write_text(json.dumps({"kind": "hyper_connections"}))
    assert main([str(tmp_path)]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("other"))
    assert "not served yet" in line


def test_a_folder_without_cases_is_an_error(tmp_path):
    assert main([str(tmp_path)]) == 2
    assert main([str(tmp_path / "missing")]) == 2
