"""`widestream widen`: a wider stream around trained blocks computes the same, and then learns."""

from dataclasses import replace

import pytest
import torch

import widestream
from conversion import MODERN, SIZES, model_of
from tiny_runs import tiny_config, write_data
from widestream.convert.centre import with_rms_norm
from widestream.convert.same import require_same
from widestream.convert.widen import widen_run, widened
from widestream.errors import UserError
from widestream.model.build import build_model
from widestream.recipe import build
from widestream.recipe.model import ModelConfig
from widestream.runs.made import Made, write_made
from widestream.train.loop import train
from widestream.train.optim import build_optimizer, set_lr

MODELS = {
    "rmsnorm": {},
    "as Llama": MODERN,
    "norms behind": MODERN | {"norm_place": "after", "qk_norm": {"over": "full"}},
    "norms on both sides, 1 + w": MODERN | {"norm_place": "both", "norm_offset": True, "qk_norm": {"over": "head"}},
    "learned positions": {"positions": "learned"},
    "experts": {"moe": {"num_experts": 3, "top_k": 2}},
    "a short window": {"short_swa": 3},
    "values of the first layer": {"value_residual": "learned"},
    "layernorm": {"norm": "layernorm", "positions": "learned"},
    "layernorm with biases": {
        "norm": "layernorm", "norm_bias": True, "attention_bias": "all", "mlp_bias": True, "tied_head": True,
        "init": {"scheme": "lecun"}, "positions": "learned",
    },
    "biases of norms alone": {"norm": "layernorm", "norm_bias": True, "value_residual": "shared"},
    "a soft cap": {"logit_soft_cap": 3.0, "tied_head": True, "mup": {"input_multiplier": 3.0}},
}  # fmt: skip


SMALL = {"init": {"scheme": "normal", "std": 0.02}, "norm_eps": 1e-3}
"""Mean squares of 4e-4 beside the norm's eps."""


@pytest.mark.parametrize("case", MODELS)
@pytest.mark.parametrize("times", [1, 2, 5])
def test_a_plain_model_computes_the_same_when_widened(case, times):
    old = model_of(MODELS[case])
    new = widened(old, 4 * times, std=0.02, seed=0)
    assert require_same(new.eval(), old) < 1e-5
    assert new.config.stream.key_dim == 4 * times
    assert new.stream.write_1[4:].count_nonzero() == 0
    assert new.stream.read_0[:, 4:].count_nonzero() == new.stream.read_0[:, 4:].numel()
    assert (new.stream.read_0[:, 4:].abs() < 0.1).all()


@pytest.mark.parametrize("kind", ["matrix", "matrix_dense"])
@pytest.mark.parametrize("gain", ["full", "row", "none"])
def test_a_matrix_model_computes_the_same_when_widened(kind, gain):
    stream = {"kind": kind, "key_dim": 6, "norm_gain": gain}
    old = model_of({"stream": stream, "norm_eps": 1e-3, "qk_norm": {"over": "head"}})
    wide = widened(old, 16, std=0.02, seed=0)
    assert require_same(wide.eval(), old) < 1e-5
    assert require_same(widened(wide, 48, std=0.02, seed=1).eval(), old) < 1e-5


def test_a_stream_that_started_plain_computes_the_same_when_widened():
    """Whose eps is less than the model's by as much as its rows were empty."""
    stream = {"kind": "matrix_dense", "key_dim": 9, "start": "plain"}
    old = build_model(build(ModelConfig, SIZES | SMALL | {"stream": stream}, "model"), 1).eval()
    assert require_same(widened(old, 20, std=0.02, seed=0).eval(), old) < 1e-5


def test_small_embeddings_beside_eps():
    """Mean squares of 4e-4 beside an eps of 1e-3, which must shrink as the mean square does, and in no other norm."""
    config = build(ModelConfig, SIZES | MODERN | SMALL | {"qk_norm": {"over": "head"}}, "model")
    old = build_model(config, 1).eval()
    assert require_same(widened(old, 32, std=0.02, seed=0).eval(), old) < 1e-5


def test_centring_is_exact_in_float64():
    old = model_of(MODELS["layernorm with biases"])
    config, weights = with_rms_norm(old)
    new = build_model(config)
    new.load_state_dict(weights)
    assert config.norm == "rmsnorm"
    assert config.head_bias
    assert not config.tied_head
    tokens = torch.arange(40).view(2, 20)
    for model in (old, new):
        model.double()
    old.config, new.config = (replace(model.config, upcast_attention=False) for model in (old, new))
    for model in (old, new):
        for block in model.blocks:
            if hasattr(block, "core"):
                block.core.upcast = False
    with torch.no_grad():
        a, b = (model.logits(model(tokens)) for model in (old, new))
    assert ((a - b).abs().max() / a.abs().max()).item() < 1e-6  # weights were rounded to float32
    losses = [model.loss(tokens, tokens).cross_entropy.item() for model in (old, new)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert losses[1] == pytest.approx(torch.nn.functional.cross_entropy(b.flatten(0, 1), tokens.flatten()).item())


def test_one_step_lowers_the_loss_and_moves_the_new_rows():
    old = model_of(MODELS["as Llama"])
    new = widened(old, 16, std=0.02, seed=0)
    optimizer = build_optimizer(new.train(), tiny_config("none", optimizer={"lr": 1e-3}).optimizer)
    tokens = torch.randint(61, (4, 21), generator=torch.Generator().manual_seed(0))
    losses = []
    for _ in range(3):
        set_lr(optimizer, 1.0)
        optimizer.zero_grad()
        loss = new.loss(tokens[:, :-1], tokens[:, 1:]).total
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    with torch.no_grad():
        losses.append(new.loss(tokens[:, :-1], tokens[:, 1:]).total.item())
    assert losses == sorted(losses, reverse=True)
    moved = widened(old, 16, std=0.02, seed=0)
    for site in range(4):
        assert getattr(new.stream, f"write_{site}")[4:].abs().min() > 0
        assert (getattr(new.stream, f"read_{site}") - getattr(moved.stream, f"read_{site}"))[:, 4:].abs().max() > 0


# ---- as runs


def made_run(folder, changes):
    """A run of a model with the byte tokenizer."""
    from widestream.data.tokenizer_base import ByteTokenizer

    model = model_of({"vocab_size": 257} | changes)
    config = tiny_config("none", "vector")
    made = Made(by="import hf", source="here", sha256="0" * 64, settings={})
    write_made(folder, replace(config, model=model.config), model, ByteTokenizer(), made)
    return folder


def test_a_trained_run_is_widened_and_trained_on(tmp_path):
    data = write_data(tmp_path / "data")
    sizes = {"norm": "rmsnorm"}
    train(tiny_config(data, "vector", model=sizes), tmp_path / "first")
    made = widen_run(tmp_path / "first", 8, tmp_path / "wide", std=0.1)
    assert made.off < 1e-5
    assert made.parameters[1] > made.parameters[0]
    model = widestream.open(tmp_path / "wide").config.model
    config = tiny_config(data, "vector", train={"init_from": str(tmp_path / "wide"), "steps": 8},
                         optimizer={"lr_factors": {"keys": 30.0, "mlp": 0.0}, "lr": 1e-3})  # fmt: skip
    result = train(replace(config, model=model), tmp_path / "on")
    _, before = _evaluated(tmp_path / "first")
    assert result.heldout["loss"] < before
    ours, theirs = (widestream.open(tmp_path / name).model().decoder for name in ("on", "wide"))
    assert ours.stream.write_1[2:].count_nonzero() > 0
    assert torch.equal(ours.blocks[1].w1, theirs.blocks[1].w1)
    assert not torch.equal(ours.blocks[0].qkv, theirs.blocks[0].qkv)


def _evaluated(run):
    from widestream.train.evaluate import evaluate_run

    step, heldout = evaluate_run(run, device="cpu")
    return step, heldout.loss


@pytest.mark.parametrize(
    ("changes", "key_dim", "sentence"),
    [
        ({}, 3, r"has D_k = 4 already; give a --key-dim of at least 4 \(at 4: keys, and no new rows\)"),
        ({"stream": {"kind": "matrix", "key_dim": 9}}, 9, "give a larger --key-dim than 9"),
        ({"stream": {"kind": "matrix", "key_dim": 9}}, 8, "has D_k = 9 already"),
        ({"width": 24}, 16, r"width 24, and 4 heads of 8: a matrix_dense stream needs width = num_heads \* head_dim"),
        ({"stream": {"kind": "laurel"}}, 16, "has a laurel stream; what is widened is a vector, matrix or"),
        ({"stream": {"kind": "matrix_delta", "key_dim": 9}}, 16, "has a matrix_delta stream; what is widened"),
        ({"stream": {"kind": "matrix", "key_dim": 9}, "norm": "layernorm"}, 16, "only one with norm: rmsnorm can be"),
        ({"norm": "layernorm", "norm_place": "both"}, 16, "only norm_place: before can be widened"),
        ({"norm": "layernorm", "norm_bias": True, "moe": {"num_experts": 3, "top_k": 2}}, 16, "router has no bias"),
        ({"norm": "layernorm", "token_before": "smear"}, 16, "token_before: smear"),
        ({"init": {"scheme": "mup"}, "mup": {"base_num_heads": 2}}, 16, "model.mup.base_num_heads"),
    ],
)
def test_what_cannot_be_widened_is_refused_and_nothing_is_written(changes, key_dim, sentence, tmp_path):
    run = made_run(tmp_path / "run", changes)
    with pytest.raises(UserError, match=sentence):
        widen_run(run, key_dim, tmp_path / "wide")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize("seed", [-1, 2**31, 10**21, "a"])
def test_a_seed_out_of_range_is_refused(seed, tmp_path):
    with pytest.raises(UserError, match=r"The seed is .*; it must be a whole number, at least 0 and below"):
        widen_run(tmp_path / "none", 16, tmp_path / "wide", seed=seed)


@pytest.mark.parametrize("std", [0.0, -1.0, float("nan"), float("inf")])
def test_new_rows_that_nothing_reads_are_refused(std, tmp_path):
    with pytest.raises(UserError, match="--std is"):
        widen_run(tmp_path / "none", 16, tmp_path / "wide", std=std)
