"""Time of the demo's training step with and without a mask, over its batches that hold no document boundary."""

import argparse
import statistics
import time
from pathlib import Path
from unittest import mock

import torch

from widestream.data.batches import Batch, TrainBatches
from widestream.data.store import TokenStore
from widestream.machine import choose_precision, keep_freed_memory
from widestream.model.build import build_model
from widestream.recipe import load_recipe
from widestream.train.optim import build_optimizer, set_lr
from widestream.train.parallel import World
from widestream.train.setup import depth_of
from widestream.train.step import optimizer_step


def main() -> None:
    """Print medians in milliseconds of the process's CPU time, and of the ratios."""
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("--rounds", type=int, default=24)
    args = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    device = torch.device("cpu")
    precision = choose_precision("auto", device)
    for recipe in ("demo/transformer", "demo/rmt"):
        config = load_recipe(recipe, [f"data.path={args.data}"])
        batches = TrainBatches(TokenStore.open(args.data, "train"), 256, config.train.batch_size, seed=0)
        few = [batch for step in range(320) if not (batch := batches.at(step)).has_boundaries]
        share = len(few) / 320
        model = build_model(config.model, seed=0, depth=depth_of(config, device))
        optimizer = build_optimizer(model, config.optimizer)
        set_lr(optimizer, 0.0)  # both ways meet the same weights
        times: dict[bool, list[float]] = {True: [], False: []}
        losses: dict[bool, list[float]] = {True: [], False: []}
        for batch in few[: args.rounds + 1]:
            for masked in times:
                with mock.patch.object(Batch, "has_boundaries", masked):
                    start = time.process_time()
                    result = optimizer_step(
                        model, optimizer, batch, world=World(device), precision=precision, z_loss=1e-4, grad_clip=1.0
                    )
                    times[masked].append(1e3 * (time.process_time() - start))
                losses[masked].append(result.loss)
        ratio = statistics.median(b / a for a, b in zip(times[True][1:], times[False][1:], strict=True))
        masked, causal = (statistics.median(values[1:]) for values in times.values())
        difference = max(abs(a - b) for a, b in zip(*losses.values(), strict=True))
        print(
            f"{recipe} {precision}: {share:.0%} of the batches; masked {masked:.0f} ms, causal {causal:.0f} ms, "
            f"ratio {ratio:.3f}, losses differ by at most {difference:.1e}",
            flush=True,
        )


if __name__ == "__main__":
    main()
