"""What every stream must hold to, ours or yours, as functions that raise AssertionError.

    from widestream.testing import CHECKS, check_stream

    check_stream({"kind": "my_package:MyStream", "rank": 4})              # all of it

    @pytest.mark.parametrize("check", CHECKS)                              # or one test each
    def test_contract(check):
        CHECKS[check]({"kind": "my_package:MyStream", "rank": 4}, {})

A case is the stream's part of a recipe, and changes to the small model around it (keys of `ModelConfig`).
"""

import dataclasses
import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from widestream.model.build import build_model, meta_model
from widestream.model.costs import summarize
from widestream.model.depth import Compiled, Eager, Recomputed, sites_of_layers
from widestream.model.record import record_exchanges
from widestream.recipe.model import ModelConfig
from widestream.streams import stream_class
from widestream.streams.vector.plain import VectorConfig
from widestream.testing.memory import check_reversible, check_saved
from widestream.testing.models import SIZES, Fields, copy_of, random_model, small_config, tokens_of, without_positions

SMALL_SCALE: Fields = {"scheme": "mup", "std": 0.02}
"""The initialisation of the published RMT code, at which embeddings have mean squares of 4e-4."""


def check_shapes(stream: Fields, changes: Fields) -> None:
    """Hidden vectors and loss have their shapes, and are finite in float32 and under bfloat16 autocast."""
    model = random_model(stream, changes)
    tokens = tokens_of(2, 20)
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            hidden, terms = model(tokens), model.loss(tokens, tokens)
        assert hidden.shape == (2, 20, model.head_weight().shape[1])
        assert hidden.isfinite().all()
        assert terms.cross_entropy.dtype == torch.float32
        assert terms.cross_entropy.isfinite()


def check_parameter_count(stream: Fields, changes: Fields) -> None:
    """The stream's own parameters are as many as its closed formula says, at two sizes."""
    for sizes in ({}, {"num_layers": 4, "num_heads": 6, "head_dim": 16, "mlp_dim": 72}):
        config = small_config(stream, changes | sizes)
        count = sum(parameter.numel() for parameter in meta_model(config).stream.parameters())
        formula = stream_class(config.stream.kind).parameter_formula(config)
        assert count == formula, f"{count} parameters, the formula says {formula}"


def check_gradients(stream: Fields, changes: Fields) -> None:
    """Every parameter has a gradient within two steps from the initial weights, and is not zero after them."""
    model = build_model(small_config(stream, changes))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    reached: set[str] = set()
    for step in range(2):
        optimizer.zero_grad()
        model.loss(tokens_of(4, 24, seed=step), tokens_of(4, 24, seed=step + 9)).total.backward()
        reached |= {name for name, p in model.named_parameters() if p.grad is not None and p.grad.norm() > 0}
        optimizer.step()
    names = {name for name, _ in model.named_parameters()}
    assert reached == names, f"no gradient reaches {', '.join(sorted(names - reached))}"
    zero = [name for name, parameter in model.named_parameters() if not parameter.any()]
    assert not zero, f"still zero after two steps: {', '.join(zero)}"


def check_causality(stream: Fields, changes: Fields) -> None:
    """A token changes nothing before it, and something after it."""
    model = random_model(stream, changes)
    tokens = tokens_of(2, 20)
    changed = tokens.clone()
    changed[:, 12] = (changed[:, 12] + 1) % SIZES["vocab_size"]
    before, after = model(tokens), model(changed)
    torch.testing.assert_close(before[:, :12], after[:, :12], rtol=0, atol=1e-5)
    assert (before[:, 12] - after[:, 12]).abs().max() > 1e-4
    assert (before[:, 13:] - after[:, 13:]).abs().max() > 1e-5


def check_documents(stream: Fields, changes: Fields) -> None:
    """What one document says changes nothing in the next, even if one of them is a single token."""
    model = random_model(stream, changes)
    tokens, segments = tokens_of(1, 20), torch.tensor([[0] * 8 + [1] + [2] * 11])
    changed = tokens.clone()
    changed[:, :8] = (changed[:, :8] + 7) % SIZES["vocab_size"]
    before, after = model(tokens, segments), model(changed, segments)
    torch.testing.assert_close(before[:, 8:], after[:, 8:], rtol=0, atol=1e-5)
    assert (before[:, :8] - after[:, :8]).abs().max() > 1e-4


def check_decoding(stream: Fields, changes: Fields) -> None:
    """Token by token, and in pieces, with a cache equals all at once; so does a step of fixed shape.

    Initial weights in float32, and random ones in float64: as far from their start as these, gates on a stream without
    a norm amplify float32's rounding a thousandfold.
    """
    initial = build_model(small_config(stream, changes), seed=1)
    for model, tolerance in ((initial, 1e-5), (copy_of(random_model(stream, changes), dtype=torch.float64), 1e-6)):
        tokens = tokens_of(2, 20)
        with torch.no_grad():
            cache = model.new_cache(2, 20)
            pieces = [model(tokens[:, a:b], cache=cache) for a, b in ((0, 9), (9, 13))]
            pieces += [model(tokens[:, t : t + 1], cache=cache) for t in range(13, 17)]
            hidden = model(tokens)
            torch.testing.assert_close(torch.cat(pieces, dim=1), hidden[:, :17], rtol=tolerance, atol=tolerance)
            for t in range(17, 20):
                logits = model.step(tokens[:, t : t + 1], torch.tensor([t]), cache)
                torch.testing.assert_close(logits, model.logits(hidden[:, t]), rtol=tolerance, atol=tolerance)
                cache.advance(1)


def check_cached_documents(stream: Fields, changes: Fields) -> None:
    """Documents are kept apart in a cache as they are without: in pieces, in steps of fixed shape, one a piece or not.

    Tokens of which no document is said go on with the last one's.
    """
    model = copy_of(random_model(stream, changes), dtype=torch.float64)
    tokens, segments = tokens_of(2, 20), torch.tensor([[0] * 7 + [1] * 6 + [2] * 7, [3] * 9 + [4] * 11])
    with torch.no_grad():
        hidden, cache = model(tokens, segments), model.new_cache(2, 20)
        pieces = [model(tokens[:, a:b], segments[:, a:b], cache) for a, b in ((0, 6), (6, 9), (9, 10), (10, 16))]
        pieces.append(model(tokens[:, 16:17], cache=cache))
        torch.testing.assert_close(torch.cat(pieces, dim=1), hidden[:, :17], rtol=1e-6, atol=1e-6)
        for t in range(17, 20):
            logits = model.step(tokens[:, t : t + 1], torch.tensor([t]), cache)
            torch.testing.assert_close(logits, model.logits(hidden[:, t]), rtol=1e-6, atol=1e-6)
            cache.advance(1)


def check_cached_gradients(stream: Fields, changes: Fields) -> None:
    """Gradients go through a cache: those of two pieces are those of all at once."""
    model = copy_of(random_model(stream, changes), dtype=torch.float64)
    tokens, target = tokens_of(2, 12), torch.randn(2, 12, model.head_weight().shape[1], dtype=torch.float64)
    cache = model.new_cache(2, 12)
    pieces = torch.cat([model(tokens[:, :7], cache=cache), model(tokens[:, 7:], cache=cache)], dim=1)
    weights = [weight for name, weight in model.named_parameters() if name != "unembedding"]
    ours, wanted = (torch.autograd.grad((x * target).sum(), weights) for x in (pieces, model(tokens)))
    for a, b in zip(ours, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8)


def check_cost(stream: Fields, changes: Fields) -> None:
    """The FLOPs that the stream declares are within 1 % of those counted, blocks and head left out.

    Without learned positions, whose write is shared by the windows of a batch.
    """
    config = small_config(stream, without_positions(changes))
    model, flops = build_model(config), summarize(config).flops
    tokens = tokens_of(16, config.context)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(tokens, torch.zeros_like(tokens))
    counted = counter.get_total_flops() / tokens.numel()
    counted -= sum(value for part, value in flops.items() if part not in ("stream", "logits"))
    assert math.isclose(counted, flops["stream"], rel_tol=0.01, abs_tol=1), f"{counted}, declared {flops['stream']}"


def check_plain_start(stream: Fields, changes: Fields) -> None:
    """If it says so, the initial model is the plain transformer: same logits and gradients. If not, it is not.

    A plain start holds at the norm's default eps, in float32, and at 12 and 24 layers at the small initial scale of
    published code: a norm is indifferent to scale only where eps is small beside the squares.
    """
    config = small_config(stream, changes)
    if not stream_class(config.stream.kind).spec(config).starts_plain:
        error, _ = distance_from_plain(config, gradients=False)
        assert error > 1e-6, "starts_plain is False, yet the logits are the same"
        return
    small = ({"num_layers": layers, "init": SMALL_SCALE} for layers in (12, 24))
    for setting in ({}, *(setting for setting in small if not changes.keys() & setting.keys())):
        error, where = distance_from_plain(small_config(stream, changes | setting), gradients=True)
        assert error < 1e-5, f"{where} is off by {error:.1e} of its size ({setting or 'settings as given'})"


def distance_from_plain(config: ModelConfig, *, gradients: bool) -> tuple[float, str]:
    """How far the initial model is from the plain transformer with the same blocks, and in what.

    Returns:
        The largest ||a - b|| / ||b|| of the logits and, with `gradients`, of the gradients of all parameters beside the
        stream's; and the name of that tensor. For a start that is said to be plain, all of these must be the same
        parameters.
    """
    models = [build_model(config, seed=1), build_model(dataclasses.replace(config, stream=VectorConfig()), seed=1)]
    tokens, targets = tokens_of(2, 20), tokens_of(2, 20, seed=1)
    logits = [model.logits(model(tokens)) for model in models]
    pairs = {"logits": (logits[0], logits[1])}
    if gradients:
        ours, shared = (dict(model.named_parameters()) for model in models)
        names = [name for name in shared if not name.startswith("stream.")]
        for name in names:
            same = name in ours and torch.equal(ours[name], shared[name])
            assert same, f"{name} is not the plain transformer's"
        losses = [model.loss(tokens, targets).total for model in models]
        got = torch.autograd.grad(losses[0], [ours[name] for name in names])
        wanted = torch.autograd.grad(losses[1], [shared[name] for name in names])
        pairs |= {f"the gradient of {name}": pair for name, *pair in zip(names, got, wanted, strict=True)}
    return max((((a - b).norm() / b.norm()).item(), name) for name, (a, b) in pairs.items())


def check_decay(stream: Fields, changes: Fields) -> None:
    """Weight decay alone leaves the initial model what it is, however long it acts.

    It pulls towards zero, so what starts at a value of its own must start there or not be decayed. What starts at
    random has no such value.
    """
    model, other = (build_model(small_config(stream, changes), seed=seed) for seed in (1, 2))
    for name, role in model.roles().items():
        start = model.get_parameter(name)
        if role.decay != "none" and torch.equal(start, other.get_parameter(name)):
            assert not start.any(), f"{name} is decayed towards zero, and starts elsewhere: its role needs decay='none'"


def check_every_parameter_matters(stream: Fields, changes: Fields) -> None:
    """Changing any one of the stream's parameters changes the output: nothing silently does nothing."""
    model = random_model(stream, changes)
    tokens = tokens_of(2, 20)
    with torch.no_grad():
        before = model.logits(model(tokens))
        for name, parameter in model.stream.named_parameters():
            kept = parameter.clone()
            parameter.add_(0.5 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)))
            after = model.logits(model(tokens))
            parameter.copy_(kept)
            assert (before - after).abs().max() > 1e-5, f"{name} does nothing"


def check_depth(stream: Fields, changes: Fields) -> None:
    """At initialisation neither state nor gradient explodes, and no read fades, over 6, 24 and 48 layers."""
    for num_layers in (6, 24, 48):
        model = build_model(small_config(stream, changes | {"num_layers": num_layers}))
        with record_exchanges(model) as exchanges:
            loss = model.loss(tokens_of(2, 12), tokens_of(2, 12, seed=1)).total
        for read in (x for exchanged in exchanges for x in exchanged.inputs.values()):
            read.retain_grad()
        loss.backward()
        for exchanged in exchanges:
            where = f"at site {exchanged.site} of {num_layers} layers"
            widest = max((_rms(x) for x in _tensors(exchanged.state) if x.is_floating_point()), default=0.0)
            assert widest < 1e3, f"a state of {widest:.1e} {where}"
            for role, x in exchanged.inputs.items():
                assert 1e-2 < _rms(x) < 1e2, f"{role} of {_rms(x):.1e} {where}"
                gradient = 0.0 if x.grad is None else x.grad.norm().item()
                assert gradient < 1e3, f"a gradient of {role} of {gradient:.1e} {where}"
        embedding = model.embedding.token.grad
        assert embedding is not None
        gradient = embedding.norm().item()
        assert 1e-6 < gradient < 1e2, f"a gradient of the embedding of {gradient:.1e} at {num_layers} layers"


def _tensors(state: Any) -> list[Tensor]:
    """All tensors in a state: in sequences, mappings and objects too."""
    if isinstance(state, Tensor):
        return [state]
    if isinstance(state, dict):
        return _tensors(list(state.values()))
    if isinstance(state, list | tuple):
        return [tensor for part in state for tensor in _tensors(part)]
    if dataclasses.is_dataclass(state):
        return _tensors([getattr(state, field.name) for field in dataclasses.fields(state)])
    return []


def _rms(x: Tensor) -> float:
    return x.detach().square().mean().sqrt().item()


def check_round_trip(stream: Fields, changes: Fields) -> None:
    """Saved and loaded weights give the same output to the bit."""
    from safetensors.torch import load_file, save_file  # kernels are also tested on machines without it

    model = random_model(stream, changes)
    other = build_model(model.config, seed=9)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        save_file(model.state_dict(), path)
        other.load_state_dict(load_file(path))
    assert torch.equal(model(tokens_of(2, 20)), other(tokens_of(2, 20)))


def check_activation_checkpointing(stream: Fields, changes: Fields) -> None:
    """Recomputing activations in the backward pass changes no gradient."""
    plain = random_model(stream, changes)
    saving = copy_of(plain, Recomputed(sites_of_layers(plain.layout)))
    for model in (plain, saving):
        model.loss(tokens_of(2, 20), tokens_of(2, 20, seed=1)).total.backward()
    for (name, a), b in zip(plain.named_parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-5, atol=1e-7, msg=name)


def check_compiling(stream: Fields, changes: Fields) -> None:
    """The depth compiles into one graph, without breaks, and computes the same."""
    model = random_model(stream, changes | {"num_layers": 2})
    tokens, segments = tokens_of(2, 20), torch.tensor([[0] * 9 + [1] * 11] * 2)
    expected = model(tokens, segments)
    torch._dynamo.reset()
    with model.using(Compiled(Eager(), backend="aot_eager", fullgraph=True)):
        torch.testing.assert_close(model(tokens, segments), expected, rtol=1e-4, atol=1e-5)


CHECKS: dict[str, Callable[[Fields, Fields], None]] = {
    check.__name__.removeprefix("check_"): check
    for check in (
        check_shapes,
        check_parameter_count,
        check_gradients,
        check_causality,
        check_documents,
        check_decoding,
        check_cached_documents,
        check_cached_gradients,
        check_cost,
        check_plain_start,
        check_decay,
        check_every_parameter_matters,
        check_depth,
        check_round_trip,
        check_activation_checkpointing,
        check_saved,
        check_reversible,
        check_compiling,
    )
}


def check_stream(stream: Fields, **changes: Any) -> None:
    """Run every check on one case.

    Args:
        stream: the stream's part of a recipe, `kind` and its own fields.
        changes: keys of `ModelConfig`.

    Raises:
        AssertionError: a check fails; its name comes first.
    """
    for name, check in CHECKS.items():
        try:
            check(stream, changes)
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from error
