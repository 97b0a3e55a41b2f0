"""Table 2 measured: ratios of second moments on the real modules, one initialisation a draw.

Inputs and gradients of outputs are independent standard normal numbers, as the closed forms of `paper/moments.py`
assume of what comes in; weights and keys are those that `build_model` gives a model of one layer. A draw's ratio is
the mean square of what comes out over that of what goes in, and for gradients the same the other way, by autograd.
"""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from widestream.blocks.attention import DenseAttention
from widestream.blocks.context import make_context
from widestream.blocks.mlp import MLP
from widestream.experiments.moments.estimate import against_closed_form
from widestream.experiments.moments.section import WAYS
from widestream.model.build import build_model
from widestream.model.decoder import Decoder
from widestream.paper.moments import PRINTED, Row, Scheme, Shape, closed_forms
from widestream.recipe import build
from widestream.recipe.model import ModelConfig
from widestream.streams.matrix.rmt import MatrixStream

WINDOWS, TOKENS = 4, 16
"""Vectors that go through each operation: few, since a draw of the weights is what varies."""


@dataclass(frozen=True, slots=True)
class Operation:
    """A map to measure."""

    apply: Callable[[Tensor], Tensor]
    """The map; differentiable."""
    shape: tuple[int, ...]
    """Shape of its input."""


def measure_ratios(shape: Shape, scheme: Scheme, draws: int, rows: Iterable[Row] | None = None) -> list[dict[str, Any]]:
    """Measure rows of `closed_forms` at one shape.

    Args:
        shape: sizes of both models.
        scheme: initialisation of weights and keys.
        draws: initialisations, of the seeds 0, 1, ...
        rows: which; default: all.

    Returns:
        An entry per row: shape, scheme, row, what Table 2 prints (for Xavier), and for both ways `against_closed_form`.
    """
    forms = closed_forms(shape, scheme, TOKENS)
    chosen = list(forms if rows is None else rows)
    by_row: dict[Row, list[tuple[float, float]]] = {row: [] for row in chosen}
    for seed in range(draws):
        for row, ratios in _draw(shape, scheme, seed, chosen):
            by_row[row].append(ratios)
    return [
        {
            "shape": asdict(shape),
            "scheme": scheme,
            "row": asdict(row),
            "printed": asdict(PRINTED[row].moments) if row in PRINTED and scheme == "xavier" else None,
            **{
                way: against_closed_form([ratios[i] for ratios in by_row[row]], getattr(forms[row], way))
                for i, way in enumerate(WAYS)
            },
        }
        for row in chosen
    ]


def _draw(shape: Shape, scheme: Scheme, seed: int, rows: list[Row]) -> Iterable[tuple[Row, tuple[float, float]]]:
    """The ratios of one initialisation."""
    generator = torch.Generator().manual_seed(seed)
    for model in dict.fromkeys(row.model for row in rows):
        built = build_model(_one_layer(shape, scheme, model), seed)
        operations = _matrix_operations(built) if model == "RMT" else _vector_operations(built)
        for row in (row for row in rows if row.model == model):
            yield row, _ratios(operations[row.layer, row.operation], generator)


def _ratios(operation: Operation, generator: torch.Generator) -> tuple[float, float]:
    """Mean square out over in, forward and backward."""
    x = torch.randn(operation.shape, generator=generator).requires_grad_()
    out = operation.apply(x)
    gradient = torch.randn(out.shape, generator=generator)
    (back,) = torch.autograd.grad(out, x, gradient)
    return _mean_square(out) / _mean_square(x), _mean_square(back) / _mean_square(gradient)


def _mean_square(x: Tensor) -> float:
    return x.detach().double().square().mean().item()


def _one_layer(shape: Shape, scheme: Scheme, model: str) -> ModelConfig:
    """Tokens and positions play no part here, so the vocabulary is small."""
    stream = {"kind": "matrix", "key_dim": shape.key_dim} if model == "RMT" else {"kind": "vector"}
    values = {
        "vocab_size": 2, "context": TOKENS, "num_layers": 1, "num_heads": shape.rank, "head_dim": shape.value_dim,
        "mlp_dim": shape.mlp_dim, "stream": stream, "positions": "none", "activation": "gelu",
        "init": {"scheme": scheme, "depth_scale": False},
    }  # fmt: skip
    return build(ModelConfig, values, "model")


def _matrix_operations(model: Decoder) -> dict[tuple[str, str], Operation]:
    """Those of the RMT; its state [B, T, V, K] is standard normal, so it is read without the norm."""
    stream, mlp = model.stream, model.blocks[1]
    assert isinstance(stream, MatrixStream)
    assert isinstance(mlp, MLP)
    config = model.config
    state = (WINDOWS, TOKENS, stream.value_dim, stream.key_dim)
    heads = (WINDOWS, TOKENS, stream.rank, stream.value_dim)
    context = make_context(config, torch.arange(TOKENS))

    def write(site: int, data: Tensor) -> Tensor:
        return stream.write(site, torch.zeros(state), data)

    def read(site: int, X: Tensor) -> Tensor:
        return stream.retrieve(stream.retrieval_keys(site), X)

    def attend(values: Tensor) -> Tensor:
        return model.blocks[0]({"q": torch.zeros_like(values), "k": values.detach(), "v": values}, context)

    return {
        ("attention", "storage"): Operation(lambda y: write(1, y), heads),
        ("attention", "retrieval"): Operation(lambda X: read(0, X), state),
        ("feed-forward", "storage"): Operation(lambda y: write(2, y), (WINDOWS, TOKENS, config.embed_dim)),
        ("feed-forward", "retrieval"): Operation(lambda X: read(1, X), state),
        ("feed-forward", "path out"): Operation(
            lambda h: write(2, F.linear(h, mlp.w2)), (WINDOWS, TOKENS, config.mlp_dim)
        ),
        ("feed-forward", "path in"): Operation(lambda X: F.linear(stream.hand_over(1, read(1, X))["x"], mlp.w1), state),
        ("attention", "whole, q = 0"): Operation(attend, heads),
    }


def _vector_operations(model: Decoder) -> dict[tuple[str, str], Operation]:
    """Those of the transformer."""
    attention, mlp, config = model.blocks[0], model.blocks[1], model.config
    assert isinstance(attention, DenseAttention)
    assert isinstance(mlp, MLP)
    x = (WINDOWS, TOKENS, config.embed_dim)
    context = make_context(config, torch.arange(TOKENS))

    def linear(weight: Tensor) -> Operation:
        return Operation(lambda y: F.linear(y, weight), (WINDOWS, TOKENS, weight.shape[1]))

    return {
        ("attention", "storage"): linear(attention.out),
        ("attention", "retrieval"): linear(attention.qkv),
        ("feed-forward", "storage"): linear(mlp.w2),
        ("feed-forward", "retrieval"): linear(mlp.w1),
        ("feed-forward", "path out"): linear(mlp.w2),
        ("feed-forward", "path in"): linear(mlp.w1),
        ("feed-forward", "whole"): Operation(lambda y: mlp({"x": y}, context), x),
    }
