import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
import yaml
from drills import outcome
from safetensors.torch import load_file

import ranks
from models import tiny
from processes import initial_weights, sharded_gradients, sharding_batch, train_as_rank, train_quickly, train_unlike
from ranks import free_port, rows, train_on
from tiny_runs import tiny_config, write_data
from widestream.errors import UserError
from widestream.model.build import build_model
from widestream.model.depth import Fused, Rebuilt
from widestream.recipe import to_dict
from widestream.recipe.train import ParallelConfig
from widestream.runs.checkpoint import latest
from widestream.runs.metrics import require_idle
from widestream.train.layout import Layout, choose_layout
from widestream.train.plan import make_plan


@pytest.mark.parametrize("told", [(0,), (0, 1)], ids=["one", "both"])
def test_told_to_end_both_save_once_and_go_on_bit_identical(data, tmp_path, told):
    config = tiny_config(data, train={"steps": 60, "save_every": 1000, "keep": 5}, optimizer={"grad_clip": 0.5})
    train_on(2, config, tmp_path / "whole")
    metrics = tmp_path / "run" / "metrics.jsonl"
    processes = ranks.start(train_as_rank, config, tmp_path / "run")
    while any(process.is_alive() for process in processes) and (not metrics.exists() or metrics.stat().st_size < 500):
        time.sleep(0.001)
    for rank in told:
        os.kill(processes[rank].pid, signal.SIGTERM)
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [143, 143]
    (saved,) = (tmp_path / "run" / "checkpoints").iterdir()
    assert 0 < int(saved.name.removeprefix("step_")) < 60
    train_on(2, config, tmp_path / "run")
    last = "checkpoints/step_00000060/model.safetensors"
    assert (tmp_path / "run" / last).read_bytes() == (tmp_path / "whole" / last).read_bytes()


GROUPS = {"replicate": 2, "shard": 2}


@pytest.mark.parametrize(
    ("how", "layout"),
    [
        (signal.SIGKILL, {"replicate": 2}),
        (signal.SIGSTOP, {"replicate": 2}),
        (signal.SIGSTOP, GROUPS),
        pytest.param(signal.SIGKILL, GROUPS, marks=pytest.mark.drill),
        pytest.param(signal.SIGSTOP, {"context": 2, "tensor": 2}, marks=pytest.mark.drill),
    ],
    ids=str,
)
def test_a_process_that_is_lost_is_one_sentence(data, tmp_path, how, layout):
    """The others end, by themselves, and the run goes on as if nothing had been."""
    size = math.prod(layout.values())
    train = {"steps": 60 * size, "save_every": 20, "keep": 2, "batch_size": 4, "parallel": {"timeout_s": 8, **layout}}
    config = tiny_config(data, model={"stream": {"kind": "vector"}, "num_heads": 4}, train=train)
    train_on(size, config, tmp_path / "whole")
    processes = ranks.start(train_unlike, [config] * size, tmp_path / "run", size=size)
    checkpoints = tmp_path / "run" / "checkpoints"
    while any(process.is_alive() for process in processes) and not (checkpoints / "step_00000020").exists():
        time.sleep(0.001)
    os.kill(processes[1].pid, how)
    for rank, process in enumerate(processes):
        if rank != 1:
            process.join(60)
            assert process.exitcode == 0
            assert f"Process {rank} has lost another one of this run" in (tmp_path / f"refusal-{rank}").read_text()
    processes[1].kill()
    processes[1].join()
    assert 20 <= latest(tmp_path / "run").step < train["steps"]
    train_on(size, config, tmp_path / "run")
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")


EXPERTS = {"num_layers": 2, "moe": {"num_experts": 4, "top_k": 2, "balance": "bias", "bias_rate": 0.05}}
"""In two layers: what the first one leaves behind has gradients, and the second one has to get at it."""


@pytest.mark.parametrize(
    ("changes", "kind", "model"),
    [
        ({}, "adamw", {}),
        ({"micro_batch_size": 1}, "adamw", {}),
        ({"stream_memory": "states"}, "adamw", {}),
        ({}, "muon", {}),
        ({"micro_batch_size": 1}, "adamw", EXPERTS),
        ({"parallel": {"shard": 2}, "micro_batch_size": 1}, "adamw", {}),
        (
            {"parallel": {"shard": 2}, "stream_memory": "states"},
            "adamw",
            {"tied_head": True, "stream": {"kind": "vector"}},
        ),
        ({"parallel": {"shard": 2}}, "muon", {}),
        ({"parallel": {"shard": 2}}, "adamw", {"stream": {"kind": "matrix_keys", "key_dim": 4}}),
        ({"micro_batch_size": 1}, "adamw", {"stream": {"kind": "matrix_keys", "key_dim": 4}}),
        ({"parallel": {"shard": 2}, "activation_checkpointing": True}, "muon", EXPERTS),
    ],
    ids=str,
)
def test_two_processes_train_as_one_does(data, tmp_path, changes, kind, model):
    optimizer = {"kind": kind, "grad_clip": 0.5}
    one, two = (
        tiny_config(data, model=model, train={"steps": 5, **changes, **layout}, optimizer=optimizer)
        for layout in ({"parallel": {}}, {})
    )
    train_quickly(one, tmp_path / "one")
    train_on(2, two, tmp_path / "two")
    one, two = rows(tmp_path / "one"), rows(tmp_path / "two")
    assert len(one) == len(two) == 7
    for a, b in zip(one, two, strict=True):
        assert (a["kind"], a["step"], a["tokens"]) == (b["kind"], b["step"], b["tokens"])
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-5)
        if a["kind"] == "train":
            assert b["grad_norm"] == pytest.approx(a["grad_norm"], rel=1e-5)
            for name in ("balance", "largest_load") if "moe" in model else ():
                assert b[name] == pytest.approx(a[name], rel=1e-5)
    ours, theirs = (ranks.weights(tmp_path / name, 5) for name in ("one", "two"))
    assert ours.keys() == theirs.keys()
    # Tensor by tensor: Muon and experts that pick carry rounding into single numbers, further than 1e-3 of small ones.
    assert max(float((theirs[name] - value).norm() / value.norm()) for name, value in ours.items()) < 1e-3


BIASED = {"norm_bias": True, "norm_place": "both", "mlp_bias": True, "attention_bias": "all", "positions": "rotary"}


@pytest.mark.parametrize(
    "model",
    [
        {},
        {"stream": {"kind": "vector"}, "norm": "layernorm", **BIASED, "qk_norm": {"over": "full"}},
        {"stream": {"kind": "vector"}, "norm": "rmsnorm", "norm_place": "both", "qk_norm": {"over": "head"}},
    ],
    ids=["matrix", "layer norms", "rms norms"],
)
def test_weights_that_are_sent_in_bfloat16_train_as_those_that_are_not(data, tmp_path, model):
    """Matrices are computed with in bfloat16 either way; gains are rounded beside them, which stays below 1e-3."""
    losses = {}
    for gather in ("float32", "bf16"):
        parallel = {"shard": 2, "gather": gather}
        config = tiny_config(data, model=model, train={"steps": 8, "precision": "bf16", "parallel": parallel})
        train_on(2, config, tmp_path / gather)
        info = json.loads((tmp_path / gather / "run.json").read_text())
        assert info["layout"] == {"replicate": 1, **parallel}
        losses[gather] = [row["loss"] for row in rows(tmp_path / gather) if row["kind"] == "train"]
        assert {value.dtype for value in ranks.weights(tmp_path / gather, 8).values()} == {torch.float32}
    assert losses["bf16"] == pytest.approx(losses["float32"], rel=1e-3)


def test_a_run_goes_on_with_another_number_of_processes(data, tmp_path):
    config = tiny_config(data, train={"steps": 6, "save_every": 3})
    train_quickly(config, tmp_path / "run")
    expected = rows(tmp_path / "run")
    newest = tmp_path / "run" / "checkpoints" / "step_00000006"
    newest.rename(tmp_path / "elsewhere")
    train_on(2, config, tmp_path / "run")
    for a, b in zip(expected, rows(tmp_path / "run"), strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-5)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_a_sharded_run_goes_on_bit_identical_and_in_other_layouts(data, tmp_path, kind):
    """Held-out windows are an odd number, so that one process has one less to evaluate."""
    train = {"steps": 6, "save_every": 3, "keep": 5, "parallel": {"shard": 2}, "eval_every": 3, "eval_windows": 5}
    config = tiny_config(data, train=train, optimizer={"kind": kind, "grad_clip": 0.5})
    train_on(2, config, tmp_path / "whole")
    expected, last = rows(tmp_path / "whole"), "checkpoints/step_00000006"
    for place in ("same", "one", "replicated"):
        shutil.copytree(tmp_path / "whole", tmp_path / place)
        shutil.rmtree(tmp_path / place / last)
        (tmp_path / place / "done.json").unlink()
    other = replace(config.train, parallel=ParallelConfig())
    train_quickly(replace(config, train=other), tmp_path / "one")
    train_on(2, config, tmp_path / "same")
    replicated = replace(config.train, parallel=ParallelConfig(replicate=2))
    train_on(2, replace(config, train=replicated), tmp_path / "replicated")
    for kind in ("model", "optimizer"):
        for part in (1, 2):
            file = f"{last}/{kind}-{part:05d}-of-00002.safetensors"
            same, whole = load_file(tmp_path / "same" / file), load_file(tmp_path / "whole" / file)
            assert same.keys() == whole.keys()
            assert all(torch.equal(same[name], value) for name, value in whole.items())
    for place in ("same", "one", "replicated"):
        found = rows(tmp_path / place)
        assert len(found) == len(expected)
        for a, b in zip(expected, found, strict=True):
            assert b["loss"] == pytest.approx(a["loss"], rel=1e-5)


def test_what_is_frozen_and_weights_of_another_run_in_shards(data, tmp_path):
    config = tiny_config(data, train={"steps": 2, "parallel": {"shard": 2}})
    train_quickly(tiny_config(data, train={"steps": 2, "seed": 5}), tmp_path / "base")
    frozen = replace(config.optimizer, lr_factors={"blocks.*": 0.0})
    trained = replace(config.train, init_from=str(tmp_path / "base"))
    train_on(2, replace(config, optimizer=frozen, train=trained), tmp_path / "on")
    base, on = (ranks.weights(tmp_path / name, 2) for name in ("base", "on"))
    assert all(torch.equal(base[name], on[name]) for name in base if name.startswith("blocks."))
    assert not torch.equal(base["embedding.token"], on["embedding.token"])


@pytest.mark.parametrize("layout", [Layout(1, 2), Layout(2, 1)], ids=str)
def test_initial_weights_are_the_same_in_every_layout(layout, tmp_path):
    config = tiny({"kind": "hyper_connections"}, num_layers=3)
    assert ranks.run(initial_weights, config, layout, tmp_path / "weights.safetensors") == [0, 0]
    found, whole = load_file(tmp_path / "weights.safetensors"), build_model(config, 3).state_dict()
    assert found.keys() == whole.keys()
    assert all(torch.equal(found[name], value) for name, value in whole.items())
    shares = json.loads((tmp_path / "shares.json").read_text())
    assert sum(shares) == sum(value.numel() for value in whole.values()) * layout.replicate
    assert max(shares) - min(shares) <= (0 if layout.shard == 1 else len(whole) * 50)


@pytest.mark.parametrize(
    ("asked", "processes", "room", "layout"),
    [
        ({}, 8, 1e9, Layout(8, 1)),
        ({}, 8, 1e7, Layout(1, 8)),
        ({"shard": 4}, 8, 1e9, Layout(2, 4)),
        ({"replicate": 4}, 8, 1e9, Layout(4, 2)),
        ({"replicate": 2, "shard": 4}, 8, 1e7, Layout(2, 4)),
    ],
    ids=str,
)
def test_what_a_layout_comes_to(asked, processes, room, layout):
    assert choose_layout(ParallelConfig(**asked), processes, 1_000_000, room, "float32") == layout


@pytest.mark.parametrize(
    ("asked", "precision", "gather"),
    [
        ({"shard": 8}, "bf16", "bf16"),
        ({"shard": 8}, "float32", "float32"),
        ({"shard": 8, "gather": "float32"}, "bf16", "float32"),
        ({"shard": 8, "gather": "bf16"}, "bf16", "bf16"),
        ({"replicate": 8}, "bf16", "float32"),
    ],
    ids=str,
)
def test_how_weights_are_sent(asked, precision, gather):
    assert choose_layout(ParallelConfig(**asked), 8, 1_000_000, 1e9, precision).gather == gather


def test_weights_are_not_sent_less_exactly_than_computed_with():
    with pytest.raises(UserError, match=r"train\.parallel\.gather is bf16, and the precision float32"):
        choose_layout(ParallelConfig(gather="bf16"), 8, 1000, 1e9, "float32")


@pytest.mark.parametrize(
    ("asked", "processes", "words"),
    [
        ({"shard": 3}, 8, r"train\.parallel is shard 3, and there are 8 processes"),
        ({"shard": 2}, 1, r"train\.parallel is shard 2, and there is 1 process;"),
        ({"replicate": 2, "shard": 2}, 8, r"train\.parallel is replicate 2 x shard 2"),
    ],
)
def test_a_layout_of_other_processes_is_refused(asked, processes, words):
    with pytest.raises(UserError, match=words):
        choose_layout(ParallelConfig(**asked), processes, 1000, 1e9, "float32")


def test_processes_that_were_not_started_alike_are_refused(data, tmp_path):
    other = write_data(tmp_path / "other", seed=7)
    config = tiny_config(data, train={"steps": 3})
    for name, unlike in {
        "optimizer.lr": tiny_config(data, train={"steps": 3}, optimizer={"lr": 0.5}),
        "fingerprint of the data": tiny_config(other, train={"steps": 3}),
    }.items():
        assert ranks.run(train_unlike, [config, unlike], tmp_path / "run") == [0, 0]
        for rank in (0, 1):
            refusal = tmp_path / f"refusal-{rank}"
            assert "not started alike" in refusal.read_text()
            assert name in refusal.read_text()
            refusal.unlink()
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"WORLD_SIZE": "2"}, "RANK, MASTER_ADDR, MASTER_PORT not set"),
        ({"WORLD_SIZE": "two"}, "no whole number"),
        ({"WORLD_SIZE": "2", "RANK": "5", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}, "RANK is 5"),
    ],
)
def test_half_an_environment_is_one_sentence(data, tmp_path, monkeypatch, environment, words):
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=words):
        train_quickly(tiny_config(data), tmp_path / "run")


MATRIX = {"kind": "matrix", "key_dim": 6}


@pytest.mark.parametrize(
    ("stream", "depth"),
    [(MATRIX, Fused("any")), (MATRIX, Rebuilt(anchors=1)),
     ({"kind": "matrix_delta", "key_dim": 6}, Rebuilt(anchors=1)), ({"kind": "mhc"}, Rebuilt(anchors=1))],
    ids=["matrix-saved", "matrix", "matrix_delta", "mhc"],
)  # fmt: skip
def test_exchanges_with_sharded_weights(stream, depth, tmp_path):
    config = tiny(stream)
    assert ranks.run(sharded_gradients, config, depth, tmp_path / "gradients.pt") == [0, 0]
    found = torch.load(tmp_path / "gradients.pt")
    whole = build_model(config)
    whole.loss(*sharding_batch(config)).total.backward()
    for name, parameter in whole.named_parameters():
        # mHC's alpha has no gradient before its first step: both must then be exactly zero.
        assert (found[name] - parameter.grad).norm() <= 1e-5 * parameter.grad.norm(), name


def test_a_batch_that_cannot_be_shared_is_refused(data):
    config = tiny_config(data)
    with pytest.raises(UserError, match=r"train.batch_size=4 cannot be split evenly over 3 processes"):
        make_plan(config, readers=3)
    with pytest.raises(UserError, match=r"train.micro_batch_size=4 does not divide the 2 windows"):
        make_plan(replace(config, train=replace(config.train, micro_batch_size=4)), readers=2)


def test_a_process_that_gets_nowhere_says_where_it_is_and_ends(tmp_path):
    """Its last sign of life is older than half as long again as processes wait for each other."""
    program = (
        "import time; from widestream.train.parallel import World; import torch\n"
        "def stuck():\n    time.sleep(60)\n"
        "World(torch.device('cpu'), 0, 2, 1).alive(); stuck()"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=50)
    assert result.returncode == 1
    assert "Timeout (0:00:01.500000)!" in result.stderr
    assert "in stuck" in result.stderr


def test_processes_whose_launcher_is_gone_save_and_end(data, tmp_path):
    config = tiny_config(data, train={"steps": 100_000, "save_every": 100_000, "log_every": 1000})
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(to_dict(config), sort_keys=False))
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(free_port())]
    command = [*launch, "-m", "widestream", "train", str(recipe), "--out", str(tmp_path / "run")]
    launcher = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    metrics = tmp_path / "run" / "metrics.jsonl"
    until(lambda: metrics.exists() and metrics.stat().st_size > 100)
    launcher.kill()
    launcher.wait()
    until(lambda: not require_idle_says(tmp_path / "run"))
    assert latest(tmp_path / "run").step > 0


def until(holds):
    """Wait for it, two minutes at most."""
    end = time.monotonic() + 120
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)


def require_idle_says(run_dir):
    """What is said of a folder in which a process trains."""
    try:
        require_idle(run_dir)
    except UserError as error:
        return str(error)
    return None
