"""The measurements at tiny sizes: what their records hold, that plots are sound, and that mistakes are one sentence."""

import json
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from widestream.bench.data import DataSettings, bench_data
from widestream.bench.decode import DecodeSettings, bench_decode
from widestream.bench.kernels import IMPLEMENTATIONS, KernelSettings, bench_kernels, find_implementations
from widestream.bench.memory import MemorySettings, bench_memory, saved_bytes
from widestream.bench.models import ModelSettings, Sizes, build_measured, list_candidates
from widestream.bench.paired import ratios, take_turns
from widestream.bench.record import Outputs
from widestream.bench.step import StepSettings, bench_step
from widestream.cli import main
from widestream.errors import UserError
from widestream.kernels.exchange import ReferenceExchange

CPU = torch.device("cpu")
SIZES = Sizes(num_layers=2, num_heads=2, head_dim=8, vocab_size=40, context=16, batch_size=2)
COMMON = {"bench", "settings", "machine", "versions"}


def models(*streams: str, key_dims: tuple[int, ...] = (4, 8)) -> ModelSettings:
    return ModelSettings(sizes=SIZES, streams=streams, key_dims=key_dims, device="cpu", precision="float32")


def outputs(folder: Path) -> Outputs:
    return Outputs(folder / "record.json")


def check_files(folder: Path, record: dict, *words: str) -> None:
    """The record on disk is what was returned, as JSON has it; both plots are well-formed, and say the words."""
    assert json.loads((folder / "record.json").read_text()) == json.loads(json.dumps(record))
    assert set(record) > COMMON
    assert record["machine"]["cpu"]
    assert record["versions"]["torch"] == torch.__version__
    for theme in ("light", "dark"):
        text = "".join(ET.parse(folder / f"record-{theme}.svg").getroot().itertext())
        assert all(word in text for word in words), text


def test_step(tmp_path):
    settings = StepSettings(models=models("vector", "matrix", "rezero"), rounds=3, warmup=1, together=2)
    record = bench_step(settings, outputs(tmp_path))
    names = ["vector", "matrix-4", "matrix-8", "rezero"]
    assert [list(group) for group in record["seconds"]] == [["vector", name] for name in names[1:]]
    assert all(len(values) == 3 for group in record["seconds"] for values in group.values())
    assert list(record["medians"]) == list(record["mfu"]) == list(record["ratios"]) == names
    group = record["seconds"][2]
    paired = sorted(a / b for a, b in zip(group["rezero"], group["vector"], strict=True))[1]
    assert record["ratios"]["rezero"] == {"vector": paired}
    assert record["ratios"]["vector"] == {}
    flops, rounds = record["flops_per_step"], zip(group["rezero"], record["matmul_flops_per_s"][2], strict=True)
    assert record["mfu"]["rezero"] == sorted(flops["rezero"] / own / peak for own, peak in rounds)[1]
    check_files(tmp_path, record, "matrix-8", "rezero", "key dim D_k", "matmul peak")


def test_memory(tmp_path):
    record = bench_memory(MemorySettings(models=models("vector", "matrix"), peak=False), outputs(tmp_path))
    saved = record["saved_bytes"]
    tokens, exchanges = SIZES.batch_size * SIZES.context, 2 * SIZES.num_layers + 1
    # Plain: the input of every norm, its mean and its rate.
    assert saved["vector"]["stream"] == tokens * exchanges * 4 * (16 + 2)
    assert all(own["model"] == own["stream"] + own["blocks"] + own["head"] for own in saved.values())
    # States of D_k x D_v are kept once or twice at every exchange, or not at all.
    slope = saved["matrix-8"]["stream"] - saved["matrix-4"]["stream"]
    assert slope in (0, 2 * 4 * 4 * SIZES.head_dim * tokens * exchanges)
    assert record["peak_bytes"] == {}
    check_files(tmp_path, record, "kept by the stream", "kept by the whole model")


def test_peaks_are_of_a_process_of_their_own(tmp_path):
    ballast = torch.ones(2**28)  # 1 GiB, which the other process must not be charged with
    settings = MemorySettings(models=models("matrix", key_dims=(4,)))
    peak = bench_memory(settings, Outputs())["peak_bytes"]["matrix-4"]
    assert 2**26 < peak < ballast.nbytes


def test_a_step_that_dies_is_told(monkeypatch, capfd):
    monkeypatch.setattr("widestream.bench.memory._START", "import sys; sys.exit('out of patience')")
    with pytest.raises(UserError, match=r"The step of matrix-4 failed, its error stands above: .* --no-peak\.$"):
        bench_memory(MemorySettings(models=models("matrix", key_dims=(4,))), Outputs())
    assert "out of patience" in capfd.readouterr().err


def test_saved_bytes_count_each_storage_once_and_no_parameter():
    (candidate,) = list_candidates(models("vector"))
    model = build_measured(candidate.config, models("vector"), CPU)
    once = saved_bytes(model, SIZES, "float32")
    assert saved_bytes(model, SIZES, "float32") == once
    twice = saved_bytes(model, replace(SIZES, batch_size=4), "float32")
    assert twice.stream == 2 * once.stream
    assert not [module for module in model.modules() if module._forward_hooks or module._forward_pre_hooks]


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_decode(tmp_path, precision):
    asked = ModelSettings(sizes=SIZES, key_dims=(4,), device="cpu", precision=precision)
    settings = DecodeSettings(models=asked, batch_sizes=(1, 3), prompt=5, tokens=6)
    record = bench_decode(settings, outputs(tmp_path))
    for size in ("1", "3"):
        assert set(record["seconds"][size]) == {"vector", "matrix-4"}
        assert len(record["seconds"][size]["vector"]) == 6
        assert record["tokens_per_s"][size]["vector"] == int(size) / record["medians"][size]["vector"]
        assert set(record["ratios"][size]["matrix-4"]) == {"vector"}
    check_files(tmp_path, record, "3 sequences", "tokens per second")


def test_compiled_steps_are_compared_with_each_other(monkeypatch):
    monkeypatch.setattr("widestream.generate.decoding._compile", lambda model, device: model.step)
    asked = ModelSettings(sizes=SIZES, key_dims=(4,), device="cpu", precision="float32", compile=True)
    record = bench_decode(DecodeSettings(models=asked, batch_sizes=(1,), prompt=2, tokens=2), Outputs())
    assert {name: list(own) for name, own in record["ratios"]["1"].items()} == {
        "vector": [],
        "matrix-4": ["vector"],
        "vector compiled": [],
        "matrix-4 compiled": ["vector compiled"],
    }


def test_kernels(tmp_path):
    settings = KernelSettings(kernels=("reference",), key_dims=(4, 8), num_tokens=6, value_dim=4, rounds=3)
    record = bench_kernels(settings, outputs(tmp_path))
    assert set(record["seconds"]["8"]) == {"copy", "reference forward", "reference backward"}
    state, data = 6 * 4 * 8 * 4, 6 * 4 * 12 * 4
    assert record["bytes_moved"]["8"]["copy"] == 2 * state
    assert record["bytes_moved"]["8"]["reference forward"] == 2 * state + data + 3 * data
    assert record["bytes_moved"]["8"]["reference backward"] == 4 * state + 2 * data + 3 * data
    assert all(share > 0 for shares in record["of_copy"].values() for share in shares.values())
    check_files(tmp_path, record, "forward", "backward", "copy bandwidth")


def test_what_cannot_run_says_why(monkeypatch):
    monkeypatch.setitem(IMPLEMENTATIONS, "other", (ReferenceExchange, lambda device: f"Not on {device}."))
    found, unavailable = find_implementations(("reference", "other"), CPU)
    assert list(found) == ["reference"]
    assert unavailable == {"other": "Not on cpu."}
    settings = KernelSettings(kernels=("other",), device="cpu")
    with pytest.raises(UserError, match="No kernel that was named runs here: Not on cpu"):
        bench_kernels(settings, Outputs())


def test_data(tmp_path):
    text = tmp_path / "text"
    text.mkdir()
    for number in range(8):
        (text / f"{number}.txt").write_text(f"some words, number {number}. " * 40)
    settings = DataSettings(paths=(str(text),), sequence_length=32, batch_size=2, batches=3, rounds=2, warmup=0)
    record = bench_data(settings, outputs(tmp_path))
    assert set(record["seconds"]) == {"prepare byte, 1 worker", "load byte"}
    assert record["tokens"]["load byte"] == 3 * 2 * 32
    assert record["tokens"]["prepare byte, 1 worker"] == sum(len(path.read_bytes()) + 1 for path in text.iterdir())
    assert record["batches_per_s"]["load byte"] == 3 / record["medians"]["load byte"]
    check_files(tmp_path, record, "Data preparation", "Loader")


def test_turns_rotate_and_getting_ready_is_not_timed(monkeypatch):
    clock, calls = [0.0], []
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])

    def candidate(name, takes):
        def ready(round_):
            clock[0] += 100
            return lambda: (calls.append((round_, name)), clock.__setitem__(0, clock[0] + takes))

        return ready

    seconds = take_turns({name: candidate(name, takes) for name, takes in (("a", 1), ("b", 2), ("c", 4))}, 3, 1, CPU)
    assert seconds == {"a": [1.0] * 3, "b": [2.0] * 3, "c": [4.0] * 3}
    assert [name for _, name in calls] == [*"cab", *"abc", *"bca", *"cab"]
    assert calls[0][0] == -1
    assert ratios(seconds, ["b"]) == {"a": {"b": 0.5}, "b": {}, "c": {"b": 2.0}}


def test_all_streams_are_candidates():
    found = [candidate.name for candidate in list_candidates(models("vector", "all", key_dims=(16,)))]
    assert found[0] == "vector"
    assert len(found) == len(set(found))
    assert {"matrix-16", "mudd", "matrix_history-16"} < set(found)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("step", "--streams", "vectr"), "did you mean vector?"),
        (("step", "--key-dims", "16,many"), "--key-dims is 16,many; it takes whole numbers"),
        (("step", "--layers", "0"), "--layers is 0; it must be at least 1."),
        (("step", "--rounds", "0"), "--rounds is 0; it must be at least 1."),
        (("step", "--streams", ","), "No stream is named"),
        (("step", "--compile", "--together", "9"), "with --compile it must be at most 8."),
        (("step", "--json", "no/such/folder/x.json"), "The folder no/such/folder does not exist"),
        (("memory", "--device", "abacus"), "is not a device"),
        (("decode", "--prompt", "2000"), "exceed the context of 1024; set --context higher."),
        (("kernels", "--kernels", "cuda"), "Unknown kernel 'cuda'"),
        (("data", "no_such_text"), "no_such_text"),
        (("data", "--workers", "0"), "--workers is 0; it must be at least 1."),
    ],
)
def test_mistakes_are_one_sentence(arguments, sentence, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["widestream", "bench", *arguments])
    with pytest.raises(SystemExit) as exit_:
        main()
    error = capsys.readouterr().err
    assert exit_.value.code == 2
    assert sentence in error
    assert len(error.strip().splitlines()) == 1


def test_the_command_prints_and_writes(tmp_path, monkeypatch, capsys):
    sizes = "--layers 1 --heads 2 --head-dim 8 --vocab 30 --context 8 --batch 1 --key-dims 4,8 --precision float32"
    arguments = ["step", *sizes.split(), "--rounds", "1", "--device", "cpu", "--plot", str(tmp_path / "picture")]
    monkeypatch.setattr("sys.argv", ["widestream", "bench", *arguments])
    with pytest.raises(SystemExit) as exit_:
        main()
    assert not exit_.value.code
    assert "matrix-8" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["picture-dark.svg", "picture-light.svg"]
