"""What attention's compiled backward pass and the compiled GELU win in a CPU's step, each model against itself.

    python lab/cpu_step.py --rounds 9

All candidates live in one process and take turns (`widestream bench step`'s own sizes: GPT-2 small, 4 x 256 tokens).
"""

import argparse
from collections.abc import Callable
from typing import Any

import torch

from widestream.bench.models import ModelSettings, build_measured, model_config
from widestream.bench.paired import medians, ratios
from widestream.bench.step import Step, own_step, time_steps
from widestream.kernels import gelu_cpu

STREAMS: dict[str, dict[str, Any]] = {"vector": {"kind": "vector"}, "matrix-32": {"kind": "matrix", "key_dim": 32}}
WAYS = {"torch": ("sdpa", False), "attention": ("fused", False), "attention and GELU": ("fused", True)}


def with_gelu(step: Step, compiled: bool) -> Step:
    """A step with the compiled GELU or with torch's."""
    suits: Callable[[torch.Tensor], bool] = gelu_cpu._suits

    def run(tokens: torch.Tensor, targets: torch.Tensor) -> None:
        gelu_cpu._suits = suits if compiled else lambda _: False
        step(tokens, targets)

    return run


def main() -> None:
    """Time and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    rounds, steps = parser.parse_args().rounds, {}
    for name, stream in STREAMS.items():
        for way, (attention, compiled) in WAYS.items():
            settings = ModelSettings(attention=attention)
            device, precision = settings.resolve()
            model = build_measured(model_config(settings.sizes, stream), settings, device)
            steps[f"{name}, {way}"] = with_gelu(own_step(model, precision), compiled)
    seconds = time_steps(steps, settings.sizes, rounds, 2, device)
    relative = ratios(seconds, seconds)
    for name, value in medians(seconds).items():
        stream, _, way = name.partition(", ")
        own, plain = (relative[name].get(other, 1.0) for other in (f"{stream}, torch", f"vector, {way}"))
        print(f"{name:30s} {value:6.3f} s   to torch {own:.3f}   to vector, the same way {plain:.3f}")


if __name__ == "__main__":
    main()
