"""A stream among the tools of others: checkpointing, compiling, sharding, optimizers; and what it says of bad input."""

import copy

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.utils.checkpoint import checkpoint

from widestream import UserError, residual

DIM = 32
SHOWN = {"mhc": {"lanes": 2}, "attn_res": {}, "matrix_dense": {"key_dim": 16}}


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv, self.out = nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, DIM)

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (12, -1)).transpose(1, 2).chunk(3, dim=1)
        return self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))


class Convolution(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Conv1d(DIM, DIM, 3, groups=DIM)

    def forward(self, x):
        return F.gelu(self.inner(F.pad(x.mT, (2, 0))).mT)


class Own(nn.Module):
    """A user's model: embedding, attention and convolutions in turn, head."""

    def __init__(self, kind, layers=2, **settings):
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.head = nn.Embedding(20, DIM), nn.Linear(DIM, 20)
        self.branches = nn.ModuleList(branch() for _ in range(layers) for branch in (Attention, Convolution))
        self.stream = residual(kind, DIM, sites=2 * layers, **settings)
        self.checkpointing = False

    def one(self, site, x, *state):
        state, x = self.stream.exchange(site, state, self.branches[site - 1](x))
        return x, *(state if isinstance(state, tuple) else (state,))

    def forward(self, ids):
        state, x = self.stream.start(self.embedding(ids))
        passed = x, *(state if isinstance(state, tuple) else (state,))
        for site in range(1, len(self.branches) + 1):
            if self.checkpointing:
                passed = checkpoint(self.one, site, *passed, use_reentrant=False)
            else:
                passed = self.one(site, *passed)
        return self.head(passed[0])

    def loss(self, ids):
        return F.cross_entropy(self(ids).flatten(0, 1), ids.roll(-1, 1).flatten())


def ids_of(rows=4, tokens=12):
    return torch.randint(20, (rows, tokens), generator=torch.Generator().manual_seed(1))


def gradients(model):
    model.zero_grad()
    model.loss(ids_of()).backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("kind", SHOWN)
def test_a_model_of_ones_own_learns_and_is_loaded_again(kind):
    model, ids = Own(kind, layers=1, **SHOWN[kind]), ids_of()
    own = [parameter for name, parameter in model.named_parameters() if not name.startswith("stream.")]
    optimizer = torch.optim.AdamW([*model.stream.parameter_groups(1e-2, 0.1), {"params": own}], lr=1e-2)
    losses = []
    for _ in range(15):
        loss = model.loss(ids)
        optimizer.zero_grad()
        loss.backward()
        assert all(parameter.grad is not None for parameter in model.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.5
    other = Own(kind, layers=1, **SHOWN[kind], seed=7)
    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert torch.equal(other(ids), model(ids))


@pytest.mark.parametrize("kind", SHOWN)
def test_it_compiles_as_one_graph(kind):
    """Without Sinkhorn's rounds, which take seconds to trace."""
    model = Own(kind, layers=1, **SHOWN[kind], **({"residual": "identity"} if kind == "mhc" else {}))
    wanted = gradients(model)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    model.zero_grad()
    F.cross_entropy(compiled(ids_of()).flatten(0, 1), ids_of().roll(-1, 1).flatten()).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, wanted[name], rtol=1e-5, atol=1e-6)
    torch.compiler.reset()


@pytest.mark.parametrize("kind", [*SHOWN, "deep_delta", "laurel", "hier_agg"])
def test_the_users_own_checkpointing_changes_no_gradient(kind):
    model = Own(kind, **SHOWN.get(kind, {})).double()
    wanted, model.checkpointing = gradients(model), True
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, wanted[name], rtol=1e-10, atol=1e-12)


@pytest.fixture
def one_process():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("kind", ["mhc", "attn_res"])
def test_fsdp2_shards_it(kind, one_process):
    model = Own(kind, **SHOWN[kind])
    sharded, wanted = copy.deepcopy(model), gradients(model)
    mesh = dist.init_device_mesh("cpu", (1,))
    for branch in sharded.branches:
        fully_shard(branch, mesh=mesh)
    fully_shard(sharded, mesh=mesh)
    sharded(ids_of())
    F.cross_entropy(sharded(ids_of()).flatten(0, 1), ids_of().roll(-1, 1).flatten()).backward()
    for name, parameter in sharded.named_parameters():
        torch.testing.assert_close(parameter.grad.full_tensor(), wanted[name], rtol=1e-5, atol=1e-7)


def test_parameter_groups_go_by_role():
    mup = {"init": {"scheme": "mup", "std": 0.02}, "mup": {"base_width": 8}}
    for kind, settings in (("attn_res", mup), ("mhc", mup), ("laurel", {}), ("vector", {"norm": None})):
        stream = residual(kind, DIM, 4, **settings)
        groups = stream.parameter_groups(lr=1e-2, weight_decay=0.1)
        names = {id(parameter): name for name, parameter in stream.core.named_parameters()}
        where = {names.pop(id(parameter)): group for group in groups for parameter in group["params"]}
        assert not names  # every one, and once
        rates = {name: (group["lr"], group["weight_decay"]) for name, group in where.items()}
        if kind == "attn_res":
            assert rates["queries"] == (1e-2 / 4, 0.1)
            assert rates["key_gains"] == rates["norms.0.gain"] == (1e-2, 0.0)
        if kind == "mhc":
            assert rates["phi"] == (1e-2 / 4, 0.1)
            assert rates["b_pre"] == (1e-2, 0.0)
        if kind == "laurel":
            assert rates["A_1"] == (1e-2, 0.1)
            assert rates["alpha"] == (1e-2, 0.0)
    without = residual("laurel", DIM, 4).parameter_groups(lr=1e-2, weight_decay=0.1, decay_keys=False)
    assert {group["weight_decay"] for group in without} == {0.0}


def test_vectors_for_q_k_and_v_where_attention_is_named():
    e = torch.randn(2, 5, DIM)
    for kind, fields, shape in (
        ("mudd", {}, (2, 5, DIM)),
        ("dca", {}, (2, 5, DIM)),
        ("matrix_dense", {"key_dim": 6, "reads": "qkv"}, (2, 5, DIM)),
        ("matrix", {"key_dim": 6, "heads": 4}, (2, 5, 4, 8)),
    ):
        stream = residual(kind, DIM, ["attention", "mlp"] * 2, **fields)
        state, x = stream.start(e)
        assert [y.shape for y in x] == [shape] * 3, kind
        state, x = stream.exchange(1, state, x[0])
        assert x.shape == (2, 5, DIM)
    # Where none is named, a matrix stream gives every branch one vector.
    assert residual("matrix", DIM, 4, key_dim=6).start(e)[1].shape == (2, 5, DIM)


def test_states_are_tensors():
    for kind, fields in (
        ("vector", {}),
        ("mhc", {}),
        ("attn_res", {}),
        ("mudd", {}),
        ("elc_bert", {}),
        ("deep_delta", {}),
    ):
        stream = residual(kind, DIM, ["attention", "mlp"] * 2, **fields)
        state, x = stream.start(torch.randn(2, 5, DIM))
        for site in range(1, 5):
            assert isinstance(state, torch.Tensor) or all(type(part) is torch.Tensor for part in state)
            state, x = stream.exchange(site, state, x[0] if isinstance(x, tuple) else x)


def test_documents_of_a_stream_that_looks_at_earlier_tokens():
    stream = residual("deep_delta", DIM, 2, compressor="token")
    segments = torch.tensor([[0, 0, 0, 1, 1, 1]])
    e = torch.randn(1, 6, DIM)
    changed = e.clone()
    changed[:, :3] += 1

    def out(e, segments):
        state, x = stream.start(e, segments)
        for site in (1, 2):
            state, x = stream.exchange(site, state, x)
        torch.testing.assert_close(stream.run(e, [lambda x: x] * 2, segments), x)
        return x

    with torch.no_grad():
        assert torch.equal(out(e, segments)[:, 3:], out(changed, segments)[:, 3:])
        assert not torch.allclose(out(e, None)[:, 3:], out(changed, None)[:, 3:])


def test_precision():
    stream = residual("mhc", DIM, 2)
    e = torch.randn(2, 5, DIM)
    state, x = stream.start(e.bfloat16())
    state, x = stream.exchange(1, state, x)
    assert x.dtype == torch.bfloat16
    assert {part.dtype for part in state} == {torch.float32}
    assert stream.run(e.bfloat16(), [lambda x: x] * 2).dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        state, x = stream.start(e)
        assert stream.exchange(1, state, x.bfloat16())[1].dtype == torch.float32
    with pytest.raises(UserError, match=r"parameters are torch\.bfloat16, but its keys"):
        stream.bfloat16().start(e.bfloat16())


def test_initial_values_depend_on_the_seed_alone():
    torch.manual_seed(1)
    first = residual("matrix", DIM, 4, key_dim=6).state_dict()
    torch.manual_seed(2)
    with torch.device("meta"):
        again = residual("matrix", DIM, 4, key_dim=6).state_dict()
    other = residual("matrix", DIM, 4, key_dim=6, seed=1).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["core.read_1"], other["core.read_1"])


@pytest.mark.parametrize(
    ("arguments", "settings", "sentence"),
    [
        (("mhcc", DIM, 4), {}, "Unknown stream kind 'mhcc'; did you mean mhc?"),
        (("mhc", DIM, 4), {"lanez": 2}, "Unknown key lanez; did you mean lanes?"),
        (("mhc", DIM, 4), {"lanes": 1}, "lanes is 1; it must be at least 2."),
        (("matrix", DIM, 4), {}, "The call lacks key_dim; give it too."),
        (("matrix", DIM, 4), {"key_dim": 6, "heads": 5}, "heads is 5; it must divide dim, 32."),
        (("matrix", 7, 4), {"key_dim": 6}, "A matrix stream cuts vectors into equal parts, and dim, 7, has no"),
        (("mhc", 0, 4), {}, "dim is 0; it must be a whole number, at least 1."),
        (("mhc", DIM, 0), {}, "There are no sites; give the number of branches, such as sites=2 * num_layers."),
        (("mhc", DIM, "attention"), {}, "sites is attention; it must be the number of branches, or a list of"),
        (("mhc", DIM, ["atention"]), {}, "Unknown kind of branch 'atention'; did you mean attention?"),
        (("mhc", DIM, 4), {"layer_size": 0}, "layer_size is 0; it must be a whole number, at least 1."),
        (("mhc", DIM, 4), {"norm": "batchnorm"}, "norm is batchnorm; it must be 'rmsnorm', 'layernorm' or None, which"),
        (("mhc", DIM, 4), {"norm_eps": 0.0}, "norm_eps is 0.0; it must be above 0."),
        (("mhc", DIM, 4), {"device": "meta"}, "A stream's values are made with it; give a device that has memory"),
        (("mhc", DIM, 4), {"mup": {"base_width": 8}}, "mup.base_width act only under init.scheme: mup"),
        (("matrix_keys", DIM, 4), {"key_dim": 6}, "A matrix_keys stream takes the place of an MLP's matrices, which"),
        (("depth_lstm", DIM, ["attention", "mlp"]), {}, "A depth_lstm stream takes the place of MLPs; leave them out"),
        (("mudd", DIM, 4), {}, "A mudd stream has vectors of their own for q, k and v of the attention that a layer"),
        (("mudd", DIM, ["attention", "mlp"] * 2), {"widen_mlps": True}, "This mudd stream says how wide MLPs are"),
        (("hier_agg", DIM, 2), {}, "A hier_agg stream merges pairs of layers; the number of layers must be"),
        (("generalized_hc", 30, 4), {}, "segments, 8, must divide the model's width, 30."),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_one_sentence(arguments, settings, sentence):
    with pytest.raises(UserError) as error:
        residual(*arguments, **settings)
    assert str(error.value).startswith(sentence)


def test_what_is_handed_over_wrongly_is_one_sentence():
    stream, e = residual("mhc", DIM, 2), torch.randn(2, 5, DIM)
    mixing = residual("deep_delta", DIM, 2, compressor="token")
    state, x = stream.start(e)
    for call, sentence in (
        (lambda: stream.start(e[0]), r"The embedding is float32 \[5, 32\]; a mhc stream set like this takes vectors"),
        (lambda: stream.start(torch.ones(2, 5, dtype=torch.int64)), r"The embedding is int64 \[2, 5\]"),
        (lambda: stream.exchange(0, state, x), "There is no site 0; this stream's are numbered from 1 to 2."),
        (lambda: stream.exchange(3, state, x), "There is no site 3"),
        (lambda: stream.exchange(1, state[0], x), r"The state has 1 tensors, and in front of site 1 it is 3; sites go"),
        (lambda: stream.exchange(1, state, x[..., :8]), r"written at site 1 is \[2, 5, 8\]; it must be \[B, T, 32\]"),
        (lambda: stream.run(e, [lambda x: x]), "There are 1 branches, and this stream has 2 sites."),
        (lambda: stream.run(e, [lambda x: x] * 2, kernels="fused"), "kernels: fused has no form for the exchange"),
        (lambda: residual("vector", DIM, 2).run(e, [F.relu] * 2, memory="writes"), "rebuilds no states.*memory: auto"),
        (lambda: mixing.start(e, torch.ones(1, 5)), r"segments are \[1, 5\]"),
        (lambda: residual("generalized_hc", DIM, 2).start(e), r"takes vectors \[B, T, 64\]"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=sentence):
            call()
