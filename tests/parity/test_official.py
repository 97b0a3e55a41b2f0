"""The golden cases, and that the checker notices what is wrong."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from check_official import WAYS, main
from widestream.kernels.exchange import ReferenceExchange, choose_exchange

HERE = Path(__file__).parent
CASES = ("rmt_mup", "rmt_zero_init", "transformer_mup")
STREAM_CASES = (
    "stream_hc_static", "stream_hc_dynamic", "stream_dwa_1x1", "stream_dwa_2x3", "stream_mudd", "stream_ddl_dv1_code",
    "stream_ddl_dv1_paper", "stream_ddl_cc_code", "stream_mhc", "stream_mhc_far",
)  # fmt: skip


def copy_case(name: str, folder: Path) -> Path:
    for suffix in (".json", ".safetensors"):
        shutil.copy(HERE / "golden" / f"{name}{suffix}", folder)
    return folder / f"{name}.safetensors"


def test_published_code_is_matched():
    command = [sys.executable, str(HERE / "check_official.py"), str(HERE / "golden")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "13 of 13 cases match; 0 not served yet" in result.stdout
    for case in STREAM_CASES:
        for quantity in ("output", "branch input", "gradient"):
            assert any(line.startswith(f"{case:24s} {quantity}") for line in result.stdout.splitlines()), case
    for case in CASES:
        for quantity in ("logits", "cross-entropy", "loss", "gradient", "parameter"):
            assert any(line.split()[:2] == [case, quantity] for line in result.stdout.splitlines())


def available_ways() -> list[list[str]]:
    """All but `fused` where this machine does not have it."""
    chosen = choose_exchange("auto", torch.device("cpu"))
    return [way for way in WAYS if way and not (isinstance(chosen, ReferenceExchange) and "fused" in way)]


@pytest.mark.parametrize("way", available_ways(), ids=str)
def test_published_code_is_matched_by_other_exchanges(way, tmp_path, capsys):
    for case in CASES[:2]:
        copy_case(case, tmp_path)
    assert main([str(tmp_path), *way]) == 0
    assert "2 of 2 cases match" in capsys.readouterr().out


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


def test_not_a_number_is_a_miss_wherever_it_stands(tmp_path):
    path = copy_case("rmt_mup", tmp_path)
    tensors = load_file(path)
    tensors["grad/unembedding.param.weight"].view(-1)[0] = float("nan")
    save_file(tensors, path)
    assert main([str(tmp_path)]) == 1


def test_epsilon_of_the_norm_is_the_cases_own(tmp_path):
    path = copy_case("rmt_mup", tmp_path).with_suffix(".json")
    meta = json.loads(path.read_text())
    path.write_text(json.dumps(meta | {"model": meta["model"] | {"rmsnorm_eps": 1e-6}}))
    assert main([str(tmp_path)]) == 0
    path.write_text(json.dumps(meta | {"model": meta["model"] | {"rmsnorm_eps": 1e-2}}))
    assert main([str(tmp_path)]) == 1


def test_as_many_steps_are_taken_as_the_case_took(tmp_path, capsys):
    """The first step changes nothing, so the initial parameters are also those after one step."""
    path = copy_case("rmt_mup", tmp_path)
    tensors = {name: value for name, value in load_file(path).items() if not name.startswith("param_after")}
    ends = {name.replace("param/", "param_after_1_steps/", 1): value.clone() for name, value in tensors.items()}
    save_file(ends | tensors, path)
    meta = json.loads(path.with_suffix(".json").read_text())
    path.with_suffix(".json").write_text(json.dumps(meta | {"steps": 1, "losses": meta["losses"][:2]}))
    assert main([str(tmp_path)]) == 0
    assert "loss             2 compared" in capsys.readouterr().out


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
    (tmp_path / "other.json").write_text(json.dumps({"kind": "a_stream_of_tomorrow"}))
    assert main([str(tmp_path)]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("other"))
    assert "not served yet" in line


@pytest.mark.parametrize("harm", ["not JSON", "[]", "{}", '{"kind": "rmt"}', "cut", "another size"])
def test_a_case_that_cannot_be_read_is_reported_and_the_others_go_on(tmp_path, capsys, harm):
    copy_case("rmt_zero_init", tmp_path)
    path = copy_case("rmt_mup", tmp_path)
    if harm == "cut":
        path.write_bytes(path.read_bytes()[:1000])
    elif harm == "another size":
        meta = json.loads(path.with_suffix(".json").read_text())
        path.with_suffix(".json").write_text(json.dumps(meta | {"model": meta["model"] | {"n_neurons": 7}}))
    else:
        path.with_suffix(".json").write_text(harm)
    assert main([str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert "cannot be compared" in next(line for line in out.splitlines() if line.startswith("rmt_mup"))
    assert "1 of 2 cases match" in out


def test_half_a_case_is_said(tmp_path, capsys):
    copy_case("rmt_zero_init", tmp_path)
    copy_case("rmt_mup", tmp_path).unlink()
    assert main([str(tmp_path)]) == 0
    assert "rmt_mup.json stands alone" in capsys.readouterr().out


def test_a_folder_without_cases_is_an_error(tmp_path):
    assert main([str(tmp_path)]) == 2
    assert main([str(tmp_path / "missing")]) == 2
