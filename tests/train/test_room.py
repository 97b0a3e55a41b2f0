"""What does not fit into memory is refused in a sentence that names the setting, and leaves no folder."""

import pytest
import torch

from tiny_runs import RECIPE, tiny_config, write_data
from widestream.errors import UserError
from widestream.machine import memory_errors, memory_total
from widestream.model import build
from widestream.recipe import from_dict
from widestream.train import begin, loop, room
from widestream.train.loop import train
from widestream.train.plan import make_plan

CPU = torch.device("cpu")


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.setattr(begin, "matmul_peak", lambda device, precision: 1e11)
    return write_data(tmp_path / "data")


@pytest.mark.parametrize(
    ("section", "changes", "part"),
    [
        ("model", {"num_heads": 10**9}, "lower model.num_layers, model.num_heads"),
        ("model", {"vocab_size": 10**9}, "its weights, gradients and moments take"),
        ("model", {"num_heads": 2 * 10**9, "head_dim": 2 * 10**9}, "The model needs more memory than there is"),
        ("train", {"batch_size": 10**12}, "lower train.batch_size"),
        ("train", {"batch_size": 10**10, "micro_batch_size": 10**9}, "lower train.batch_size"),
    ],
)
def test_sizes_beyond_any_memory(data, tmp_path, section, changes, part):
    with pytest.raises(UserError, match=part):
        train(tiny_config(data, **{section: changes}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_is_kept_for_the_backward_pass_counts_unless_it_is_computed_again(data, tmp_path, monkeypatch):
    monkeypatch.setattr(room, "memory_total", lambda device: 1 << 17)
    with pytest.raises(UserError, match=r"micro_batch_size=64\) keep at least .* lower train.micro_batch_size"):
        train(tiny_config(data, train={"batch_size": 64}), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    train(tiny_config(data, train={"batch_size": 64, "micro_batch_size": 2, "steps": 2}), tmp_path / "parts")
    again = {"batch_size": 64, "steps": 2, "activation_checkpointing": True}
    train(tiny_config(data, train=again), tmp_path / "again")


@pytest.mark.parametrize("setting", ["context", "tensor"])
def test_what_processes_share_counts_once(data, monkeypatch, setting):
    model, train = {"stream": {"kind": "vector"}}, {"batch_size": 64}
    config = tiny_config(data, model=model, train={**train, "parallel": {setting: 2}})
    plan, summary = make_plan(config), {"activation_bytes_per_token": {"states": 100.0}}
    monkeypatch.setattr(room, "memory_total", lambda device: 100 * 16 * 64 / 2)
    room.require_memory(CPU, config.train, plan, summary)
    with pytest.raises(UserError, match="keep at least"):
        room.require_memory(CPU, tiny_config(data, model=model, train=train).train, plan, summary)


def test_an_allocation_that_fails_in_a_step_is_a_sentence(data, tmp_path, monkeypatch):
    def fails(*args, **kwargs):
        torch.empty(1 << 60)

    monkeypatch.setattr(loop, "optimizer_step", fails)
    with pytest.raises(UserError, match=r"A step needs more memory than there is; lower train\.micro_batch_size"):
        train(tiny_config(data), tmp_path / "run")


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory")])
def test_every_way_to_run_out_of_memory_is_known(error):
    with (
        pytest.raises(UserError, match=r"This needs more memory than there is; do less\."),
        memory_errors("This", "do less"),
    ):
        raise error


def test_other_errors_pass():
    with pytest.raises(RuntimeError, match="without overflow"), memory_errors("This", "do less"):
        torch.full((1,), 1000, dtype=torch.uint8)  # nothing to do with memory
    with pytest.raises(RuntimeError, match="another thing"), memory_errors("This", "do less"):
        raise RuntimeError("another thing")


def test_a_model_that_does_not_fit_is_not_made(monkeypatch):
    config = from_dict(RECIPE).model
    weights = build.count_weights(build.meta_model(config))
    monkeypatch.setattr(build, "memory_total", lambda device: 4 * weights)
    build.build_model(config)
    monkeypatch.setattr(build, "memory_total", lambda device: 4 * weights - 1)
    with pytest.raises(UserError, match=f"The model has {weights:,} parameters: its weights take"):
        build.build_model(config)
    assert build.build_model(config, device="meta").head_weight().is_meta


def test_a_size_of_a_stream_that_is_no_size():
    wide = RECIPE["model"] | {"stream": {"kind": "matrix", "key_dim": 2 * 10**12}}
    with pytest.raises(UserError, match=r"model.stream.key_dim is 2000000000000; it must be at most"):
        from_dict(RECIPE | {"model": wide})


def test_this_machine_has_memory():
    assert memory_total(CPU) > 1 << 28
