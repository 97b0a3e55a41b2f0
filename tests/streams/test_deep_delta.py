"""Deep Delta Learning against its equations in loops, the facts of the delta rule, and the published counts."""

import pytest
import torch
import torch.nn.functional as F

from models import tiny
from widestream.blocks.context import make_context
from widestream.errors import UserError
from widestream.model.build import build_model, meta_model
from widestream.streams.vector.deep_delta import DeepDeltaStream, delta_write, unit_key

SETTINGS = [
    {},
    {"write": "add", "value_bound": None, "beta0": 0.3},
    {"compressor": "channel"},
    {"compressor": "channel", "value_channels": 3, "taps": 2, "expand_embedding": True},
    {"compressor": "token", "write": "add"},
    {"compressor": "token", "value_channels": 2, "taps": 3, "expand_embedding": True, "value_bound": None},
]
SEGMENTS = [0, 0, 0, 0, 0, 1, 2, 2, 2]


def random_stream(settings):
    """A double-precision model of two layers with no parameter left at its initial value, and its stream."""
    model = build_model(tiny({"kind": "deep_delta", **settings}, norm="rmsnorm"), seed=1).double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.stream.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=generator, dtype=p.dtype))
    assert isinstance(model.stream, DeepDeltaStream)
    return model, model.stream


def reference(stream, settings, embedding, branches, segments):
    """Equations 1 to 7 of one sequence, number by number: embedding [T, D] -> what the head receives [T, D]."""
    T, D = embedding.shape
    V, J = settings.channels, settings.num_taps

    def before(values, t, j):  # the value j tokens back, if it is of the same document
        return values[t - j] if t >= j and segments[t - j] == segments[t] else torch.zeros_like(values[t])

    def compressed(X, site):
        if settings.compressor == "none":
            return [X[t][:, 0] for t in range(T)]
        c = stream.compressors[site // 2]
        out = [torch.zeros(D, dtype=torch.float64) for _ in range(T)]
        for t in range(T):
            for v in range(V):
                for j in range(J):
                    if settings.compressor == "token":
                        out[t] = out[t] + c.read[v] * c.taps[j, v] * before(X, t, j)[:, v]
                    elif 0 <= (u := v + j - (J - 1) // 2) < V:
                        out[t] = out[t] + c.read[v] * c.taps[j] * X[t][:, u]
        return out

    X = []  # one [D, V] per token
    for t in range(T):
        columns = [embedding[t]] * V
        if settings.expand_embedding:
            from_taps = [[stream.expand[j, v] * before(embedding, t, j) for j in range(J)] for v in range(V)]
            columns = [torch.stack(values).sum(0) for values in from_taps]
        X.append(torch.stack(columns, dim=1))
    for site in range(len(branches) + 1):
        x_in = compressed(X, site)
        gain = stream.norms[site].gain
        c = [gain * x / torch.sqrt(x.square().mean() + 1e-6) for x in x_in]
        if site == len(branches):
            return torch.stack(c)
        write, h = stream.writes[site], branches[site](torch.stack(c))
        for t in range(T):
            k = h[t] / torch.sqrt(h[t].square().sum() + settings.key_eps**2)
            beta = 2 / (1 + torch.exp(-(write.w_beta[0] @ c[t] + write.b_beta[0])))
            v = write.w_v @ x_in[t] + write.b_v
            v = v if settings.value_bound is None else settings.value_bound / (1 + torch.exp(-v))
            keep = torch.eye(D, dtype=torch.float64)
            if settings.write == "delta":
                keep = keep - beta * torch.outer(k, k)
            X[t] = keep @ X[t] + beta * torch.outer(k, v)
    raise AssertionError


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_equations(settings):
    model, stream = random_stream(settings)
    generator = torch.Generator().manual_seed(4)
    embedding = torch.randn(len(SEGMENTS), 32, generator=generator, dtype=torch.float64)
    weights = torch.randn(4, 32, 32, generator=generator, dtype=torch.float64) / 5
    branches = [lambda x, w=w: torch.tanh(x @ w) for w in weights]
    expected = reference(stream, model.config.stream, embedding, branches, SEGMENTS)
    context = make_context(model.config, torch.arange(len(SEGMENTS)), torch.tensor([SEGMENTS]))
    state, inputs = stream.exchange(0, stream.empty(context), (embedding[None], None))
    for site, branch in enumerate(branches, start=1):
        state, inputs = stream.exchange(site, state, branch(inputs["x"]))
    torch.testing.assert_close(inputs["x"][0], expected, rtol=1e-10, atol=1e-10)


def drawn(V=3):
    """A state [1, 2, V, 7], unit keys, and values to be written."""
    generator = torch.Generator().manual_seed(3)
    draw = [torch.randn(1, 2, *rest, generator=generator, dtype=torch.float64) for rest in ((V, 7), (7,), (V,))]
    return draw[0], unit_key(draw[1], 1e-9), draw[2]


def test_beta_of_zero_changes_nothing():
    X, k, v = drawn()
    assert torch.equal(delta_write(X, k, torch.zeros(1, 2, 1), v), X)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_a_model_whose_betas_are_zero_reads_its_embedding(settings):
    model, stream = random_stream(settings)
    with torch.no_grad():
        for name, parameter in stream.named_parameters():
            if name.endswith("b_beta"):
                parameter.fill_(-1e4)
    tokens, last = torch.arange(9)[None], len(stream.readers) - 1
    context = make_context(model.config, torch.arange(9))
    state = stream.write_embedding(stream.empty(context), *model.embedding(tokens, context.positions))
    torch.testing.assert_close(model(tokens), stream.look(last, state.X, context).normed)


def test_beta_of_one_erases_and_writes():
    """Read along k, the new state is v; read across k, it is the old one [EQ-6]."""
    X, k, v = drawn()
    new = delta_write(X, k, torch.ones(1, 2, 1), v)
    torch.testing.assert_close(torch.einsum("btvd,btd->btv", new, k), v)
    across = torch.eye(7, dtype=torch.float64) - k.unsqueeze(-1) * k.unsqueeze(-2)
    torch.testing.assert_close(new @ across, X @ across)


def test_beta_of_two_reflects():
    """Householder: with v = 0 it is orthogonal, its own inverse, and turns k round."""
    X, k, v = drawn()
    two, nothing = torch.full((1, 2, 1), 2.0, dtype=torch.float64), torch.zeros_like(v)
    new = delta_write(X, k, two, nothing)
    torch.testing.assert_close(new.square().sum(-1), X.square().sum(-1))
    torch.testing.assert_close(delta_write(new, k, two, nothing), X)
    torch.testing.assert_close(delta_write(k.unsqueeze(-2), k, two, nothing[..., :1]), -k.unsqueeze(-2))


@pytest.mark.parametrize("beta", [0.3, 1.0, 1.7])
def test_eigenvalues_of_the_linear_part(beta):
    """1, D - 1 times, and 1 - beta [EQ-5]; without erasure 1, D times."""
    _, k, _ = drawn()
    unit = torch.eye(7, dtype=torch.float64).expand(1, 2, 7, 7)  # seven channels hold the unit vectors
    nothing, beta_ = torch.zeros(1, 2, 7, dtype=torch.float64), torch.full((1, 2, 1), beta, dtype=torch.float64)
    eigenvalues = torch.linalg.eigvalsh(delta_write(unit, k, beta_, nothing)[0, 0])
    torch.testing.assert_close(
        eigenvalues, torch.tensor([1.0] * 7, dtype=torch.float64).scatter(0, eigenvalues.argmin(), 1 - beta)
    )
    assert torch.equal(delta_write(unit, k, beta_, nothing, erase=False), unit)


def test_channels_of_a_repeated_embedding_stay_equal_under_equal_values():
    """With the same value in every channel, an expanded state is one channel repeated: width alone brings nothing."""
    X, k, v = drawn(V=1)
    beta = torch.full((1, 2, 1), 0.7, dtype=torch.float64)
    wide = delta_write(X.expand(1, 2, 4, 7), k, beta, v.expand(1, 2, 4))
    torch.testing.assert_close(wide, delta_write(X, k, beta, v).expand(1, 2, 4, 7))


def test_adding_differs_from_the_delta_rule_by_the_erasure_alone():
    X, k, v = drawn()
    beta = torch.full((1, 2, 1), 0.7, dtype=torch.float64)
    erased = 0.7 * torch.einsum("btd,btvd->btv", k, X).unsqueeze(-1) * k.unsqueeze(-2)
    torch.testing.assert_close(delta_write(X, k, beta, v, erase=False) - delta_write(X, k, beta, v), erased)
    delta, add = (
        build_model(tiny({"kind": "deep_delta", "compressor": "channel", "write": write})) for write in ("delta", "add")
    )
    assert all(torch.equal(p, add.get_parameter(name)) for name, p in delta.named_parameters())
    tokens = torch.arange(9)[None]
    assert not torch.allclose(delta(tokens), add(tokens))


def test_expansion_of_the_embedding_starts_as_a_repetition():
    repeated, expanded = (
        build_model(tiny({"kind": "deep_delta", "compressor": "token", "expand_embedding": ec})) for ec in (False, True)
    )
    tokens = torch.arange(9)[None]
    torch.testing.assert_close(expanded(tokens), repeated(tokens))


@pytest.mark.parametrize("beta0", [0.1, 1.0, 1.9])
def test_beta_starts_at_beta0(beta0):
    stream = build_model(tiny({"kind": "deep_delta", "beta0": beta0})).stream
    betas = [2 * torch.sigmoid(stream.get_parameter(f"writes.{i}.b_beta")).item() for i in range(4)]
    assert betas == pytest.approx([beta0] * 4)


def test_length_of_a_key_does_not_depend_on_the_output():
    h = torch.randn(5, 16, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(unit_key(100 * h, 1e-5), unit_key(h, 1e-5))
    torch.testing.assert_close(unit_key(h, 1e-5), F.normalize(h, dim=-1))
    assert torch.equal(unit_key(torch.zeros(5, 16), 1e-5), torch.zeros(5, 16))
    assert unit_key(h.bfloat16(), 1e-5).dtype == torch.float32


GPT2_SMALL = {"num_layers": 12, "num_heads": 12, "head_dim": 64, "mlp_dim": 3072}


@pytest.mark.parametrize(
    ("settings", "extra"),
    [
        ({}, 24 * 2 * 769),  # 36,912
        ({"compressor": "channel"}, 24 * 5 * 769 + 13 * (4 * 768 + 4)),  # 132,268
        ({"compressor": "token"}, 24 * 5 * 769 + 13 * (16 * 768 + 4)),
        ({"compressor": "channel", "expand_embedding": True}, 132_268 + 16 * 768),
    ],
    ids=str,
)
def test_counts_at_the_size_of_gpt2_small(settings, extra):
    plain, delta = (
        sum(p.numel() for p in meta_model(tiny(stream, **GPT2_SMALL)).parameters())
        for stream in ("vector", {"kind": "deep_delta", **settings})
    )
    assert delta - plain == extra


@pytest.mark.parametrize("settings", [SETTINGS[i] for i in (0, 1, 2, 4)] + [{"compressor": "token"}], ids=str)
def test_bytes_saved_are_those_that_autograd_keeps(settings):
    """Each storage once, parameters and the norms' statistics left out."""
    model = build_model(tiny({"kind": "deep_delta", **settings}, num_heads=8, head_dim=16))
    stream, tokens, alive = model.stream, 256, []
    parameters = {p.data_ptr() for p in stream.parameters()}

    def keep(x):
        if x.data_ptr() not in parameters and x.numel() >= 128 * tokens:
            alive.append(x)
        return x

    def vector():
        return torch.randn(1, tokens, 128, requires_grad=True)

    context = make_context(model.config, torch.arange(tokens))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        state, _ = stream.exchange(0, stream.empty(context), (vector(), None))
        for site in range(1, 5):
            state, _ = stream.exchange(site, state, vector())
    kept = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in alive}
    assert sum(kept.values()) / tokens == pytest.approx(stream.cost().bytes_saved, rel=0.1)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"value_channels": 4}, "need a compressor"),
        ({"expand_embedding": True}, "need a compressor"),
        ({"taps": 2}, "need a compressor"),
        ({"compressor": "channel", "value_channels": 1}, "from 2 to 1024"),
        ({"compressor": "channel", "value_channels": 10**9}, "from 2 to 1024"),
        ({"compressor": "channel", "value_channels": 2, "taps": 3}, "from 1 to value_channels, 2"),
        ({"compressor": "token", "taps": 0}, "at least 1"),
        ({"beta0": 2.0}, "both excluded"),
        ({"value_bound": 0.0}, "value_bound is 0.0; it must be positive"),
        ({"key_eps": -1e-5}, "key_eps is -1e-05; it must be positive"),
    ],
    ids=str,
)
def test_settings_that_make_no_sense(settings, words):
    with pytest.raises(UserError, match=words):
        tiny({"kind": "deep_delta", **settings})
