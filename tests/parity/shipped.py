"""Models of transformers whose residual stream is built here: tiny ones, driven on the same branches as our stream.

Theirs is the whole text model as it ships, embedding and head left out; in place of every attention and every MLP
stands a `Branch`. So all that is left of it is the stream with its norms, and what its branches are given is what our
stream's readers must be given.
"""

import importlib
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from widestream.model.build import build_model
from widestream.recipe import build
from widestream.recipe.model import ModelConfig
from widestream.streams.base import Stream

Named = dict[str, Tensor]


class Branch(nn.Module):
    """tanh of a map of what it is given, in place of a block."""

    def __init__(self, width: int, extra: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(3, width, width))
        self.extra, self.seen = extra, []

    def forward(
        self,
        hidden_states: Tensor,
        *_: Any,
        key_hidden_states: Tensor | None = None,
        value_hidden_states: Tensor | None = None,
        **__: Any,
    ) -> Any:
        """Of x, or of q, k and v; with as many further results as the block has."""
        given = [x for x in (hidden_states, key_hidden_states, value_hidden_states) if x is not None]
        given = given[:1] if all(x is hidden_states for x in given) else given
        self.seen = given
        y = self.compute(given)
        return (y, *[None] * self.extra) if self.extra else y

    def compute(self, given: list[Tensor]) -> Tensor:
        """What a block of ours would put out."""
        products = [x @ weight for x, weight in zip(given, self.weight, strict=False)]
        return torch.stack(products).sum(0).tanh()


class InFloat64(TorchFunctionMode):
    """Computes in float64 what asks for float32: rounding hides nothing then, and sums of large terms agree too."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.float:
            func = torch.Tensor.double
        args = tuple(torch.float64 if x is torch.float32 else x for x in args)
        kwargs = {name: torch.float64 if x is torch.float32 else x for name, x in (kwargs or {}).items()}
        return func(*args, **kwargs)


class Pass(nn.Module):
    """In place of what is no part of the stream."""

    def forward(self, x: Tensor, **_: Any) -> Tensor:
        """As it came."""
        return x


class Masks(dict):
    """Attention masks by kind of layer: no branch looks at one."""

    def __missing__(self, key: str) -> None:
        return None


@dataclass
class Drawn:
    """Settings beside the sizes, drawn from a seed."""

    theirs: dict[str, Any] = field(default_factory=dict)
    """Of their model."""
    stream: dict[str, Any] = field(default_factory=dict)
    """Of our stream."""
    model: dict[str, Any] = field(default_factory=dict)
    """Of our model."""


@dataclass
class Case:
    """How a model_type is built, and what its parameters are called here."""

    classes: tuple[str, str]
    """Configuration and model."""
    theirs: Callable[..., dict[str, Any]]
    """Settings of theirs, from lanes and layers."""
    ours: Callable[[Named, int], Named]
    """Our parameters (or gradients) from theirs and the number of layers."""
    stream: Callable[[int], dict[str, Any]] = lambda lanes: {}
    """Settings of our stream beside those in its `models`, from the number of lanes."""
    model: dict[str, Any] = field(default_factory=dict)
    """Settings of our model beside the stream."""
    draw: Callable[[random.Random, int], Drawn] = lambda dice, layers: Drawn()
    """Further settings, from the number of layers."""
    behind: tuple[str, str] | None = None
    """Norms behind them."""
    state: Callable[[Any, int, Any, Tensor, Any], Tensor] = lambda stream, site, before, written, after: after
    """The stream at a layer's end, as theirs: from ours, site, state before, what was written, state after."""
    shift: Callable[[int], dict[str, float]] = lambda layers: {}
    """What is added to our parameters, where a gain of theirs is not 1 + w as the others are."""
    extra: Callable[[Any], tuple[int, int]] = lambda layer: (1, 0)
    """Further results of a layer's attention and MLP."""
    zero: tuple[str, ...] = ()
    """Ends of names of parameters of theirs that are zero: of what is left out here."""
    inputs: dict[str, Any] = field(default_factory=dict)
    """Further inputs of the model."""


def build_theirs(model_type: str, case: Case, width: int, layers: int, settings: dict[str, Any]) -> Any:
    """Their model with branches in place of blocks, its weights still to be drawn."""
    conf, modeling = (
        importlib.import_module(f"transformers.models.{model_type}.{part}_{model_type}")
        for part in ("configuration", "modeling")
    )
    common = {
        "vocab_size": 11, "hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": 2, "head_dim": 8,
        "num_key_value_heads": 2, "intermediate_size": 16, "max_position_embeddings": 64, "pad_token_id": 0,
        "bos_token_id": 1, "eos_token_id": 2, "rms_norm_eps": 1e-6,
    }  # fmt: skip
    torch.set_default_dtype(torch.float64)
    try:
        model = getattr(modeling, case.classes[1])(getattr(conf, case.classes[0])(**(common | settings))).eval()
    finally:
        torch.set_default_dtype(torch.float32)
    for layer in model.layers:
        attention = attention_of(layer)
        numbers = case.extra(layer)
        setattr(layer, attention, Branch(width, numbers[0]))
        layer.mlp = Branch(width, numbers[1])
        if hasattr(layer, "layer_scalar"):  # a buffer, which would have no gradient
            scalar = layer.layer_scalar
            del layer.layer_scalar
            layer.layer_scalar = nn.Parameter(scalar)
        for name in ("post_attention_convolution", "post_mlp_convolution"):
            if hasattr(layer, name):
                setattr(layer, name, Pass())
    return model.double()


def branches_of(model: Any) -> list[Branch]:
    """All of them, in the order of depth."""
    return [getattr(layer, name) for layer in model.layers for name in (attention_of(layer), "mlp")]


def attention_of(layer: nn.Module) -> str:
    """What a layer calls its attention."""
    return "linear_attn" if hasattr(layer, "linear_attn") else "self_attn"


@torch.no_grad()
def draw_weights(model: nn.Module, case: Case, generator: torch.Generator, gain: float) -> None:
    """Every parameter far from its start: maps of that gain, numbers and gains of norms around their start."""
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if name.endswith(case.zero or ("-",)):
            parameter.zero_()
        elif isinstance(model.get_submodule(name.rpartition(".")[0]), Branch) or parameter.dim() > 1:
            parameter.copy_(gain * noise / parameter.shape[-1] ** 0.5)
        else:
            start = 1.0 if name.endswith(("norm.weight", "scale", "residual", "layernorm.weight")) else 0.0
            parameter.copy_(start + 0.4 * noise)


def build_ours(kind: str, stream: dict[str, Any], case: Case, width: int, layers: int, model: dict[str, Any]) -> Stream:
    """Our stream of the same sizes."""
    sizes = {"vocab_size": 2, "num_layers": layers, "num_heads": 1, "head_dim": width, "mlp_dim": 1, "norm": "rmsnorm"}
    place = {"norm_place": "both"} if case.behind else {}
    config = build(ModelConfig, sizes | place | case.model | model | {"stream": {"kind": kind, **stream}}, "model")
    return build_model(config).double().stream


@dataclass
class Passed:
    """What one pass leaves behind."""

    inputs: list[list[Tensor]]
    """What each branch was given."""
    states: list[Tensor]
    """The stream at every layer's end."""
    output: Tensor
    """What the head reads."""


def pass_theirs(model: Any, embedding: Tensor, more: dict[str, Any]) -> Passed:
    """Through their model."""
    states: list[Any] = []

    def keep(module: nn.Module, args: Any, output: Any) -> None:
        states.append(output[0] if isinstance(output, tuple) else output)

    hooks = [layer.register_forward_hook(keep) for layer in model.layers]
    masks = {"attention_mask": Masks(any=None)} | more
    with InFloat64():
        output = model(inputs_embeds=embedding, use_cache=False, **masks).last_hidden_state
    for hook in hooks:
        hook.remove()
    return Passed([branch.seen for branch in branches_of(model)], states, output)


def pass_ours(stream: Stream, case: Case, theirs: Any, embedding: Tensor) -> Passed:
    """Through our stream, on their branches and the norms behind these."""
    behind: list[nn.Module] = []
    for layer in theirs.layers:
        behind += [getattr(layer, name) for name in case.behind] if case.behind else [nn.Identity()] * 2
    state, inputs = stream.exchange(0, None, (embedding, None))
    passed = Passed([], [], embedding)
    for site, (branch, norm) in enumerate(zip(branches_of(theirs), behind, strict=True), start=1):
        passed.inputs.append(list(inputs.values()))
        with InFloat64():
            written = norm(branch.compute(passed.inputs[-1]))
        before = state
        state, inputs = stream.exchange(site, state, written)
        if site % 2 == 0:
            passed.states.append(case.state(stream, site, before, written, state))
    passed.output = inputs["x"]
    return passed


def error(a: Tensor, b: Tensor) -> float:
    """The largest difference, relative to the largest entry."""
    assert a.shape == b.shape, f"{[*a.shape]} and {[*b.shape]}"
    return ((a - b).abs().max() / b.abs().max()).item()
