"""How far rebuilt states drift: gradients of rebuilt against saved states, over depth, precision and anchors.

    python lab/reversible_drift.py [--small]

Prints one row per case: relative errors of the whole gradient and of the worst parameter against plain autograd in
float64, and the error of plain autograd in the same precision beside them. --small leaves out 200 layers.
"""

import copy
import itertools
import sys

import torch

from widestream.model.build import build_model
from widestream.model.decoder import Decoder
from widestream.model.depth import Depth, Eager, Rebuilt
from widestream.recipe import build
from widestream.recipe.model import ModelConfig

SIZES = {"vocab_size": 64, "context": 32, "num_heads": 4, "head_dim": 16, "mlp_dim": 128, "upcast_attention": False}
STREAMS = {
    "matrix": {"kind": "matrix", "key_dim": 32},
    "matrix_delta": {"kind": "matrix_delta", "key_dim": 32},
    "deep_delta": {"kind": "deep_delta"},
}
Gradients = dict[str, torch.Tensor]


def gradients(model: Decoder, depth: Depth, dtype: torch.dtype = torch.float32) -> Gradients:
    """Of one batch's loss, in float64."""
    model = copy.deepcopy(model).to(dtype)
    tokens, targets = torch.randint(64, (2, 2, 32), generator=torch.Generator().manual_seed(1))
    with model.using(depth):
        model.loss(tokens, targets).total.backward()
    return {name: p.grad.double() for name, p in model.named_parameters() if p.grad is not None}


def errors(found: Gradients, wanted: Gradients) -> tuple[float, float]:
    """Relative error of the whole gradient, and of the worst parameter."""
    parts = {name: (found[name] - grad).norm().item() for name, grad in wanted.items()}
    whole = (
        sum(part**2 for part in parts.values()) ** 0.5 / sum(grad.norm().item() ** 2 for grad in wanted.values()) ** 0.5
    )
    return whole, max(part / wanted[name].norm().item() for name, part in parts.items())


def random_model(stream: dict, layers: int, growth: float) -> Decoder:
    """Away from the initial values, where writes are small and states nearly the same.

    With `growth`, the last write of a matrix stream is so many times as large as the first, and so is the state.
    """
    config = build(ModelConfig, SIZES | {"num_layers": layers, "stream": stream}, "model")
    model = build_model(config, seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1 + 0.2 * torch.randn(parameter.shape, generator=generator))
        if growth > 1:
            for site in range(1, 2 * layers + 1):
                model.get_parameter(f"stream.write_{site}").mul_(growth ** (site / (2 * layers)))
    return model


def main() -> None:
    """Print the table."""
    print("| stream | layers | growth | state | anchors | gradient | worst parameter |\n|---|---|---|---|---|---|---|")
    cases = [(name, 1.0) for name in STREAMS] + [("matrix", 1e3)]
    for (name, growth), layers in itertools.product(cases, (6, 48) if "--small" in sys.argv else (6, 48, 200)):
        model = random_model(STREAMS[name], layers, growth)
        wanted = gradients(model, Eager(), torch.float64)
        rows: list[tuple[str, Depth]] = [("float32, saved", Eager())]
        rows += [("float32", Rebuilt(anchors=anchors)) for anchors in (0, 3)]
        if name == "matrix":  # with the most anchors, every state is exactly the forward pass's
            rows += [("bf16", Rebuilt(anchors=anchors, bf16=True)) for anchors in (0, 3, 2 * layers - 1)]
        for state, depth in rows:
            whole, worst = errors(gradients(model, depth), wanted)
            anchors = depth.anchors if isinstance(depth, Rebuilt) else "all"
            print(f"| {name} | {layers} | {growth:.0f} | {state} | {anchors} | {whole:.1e} | {worst:.1e} |", flush=True)


if __name__ == "__main__":
    main()
