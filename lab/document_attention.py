"""CPU time of attention, forward and backward, over real windows: with a mask, document by document, causal alone."""

import argparse
import statistics
import time
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from widestream.data.batches import TrainBatches
from widestream.data.store import TokenStore

B, T, H, K = 8, 256, 8, 32
REPETITIONS = 8


def masked(q: Tensor, k: Tensor, v: Tensor, segments: Tensor) -> Tensor:
    """As `BareAttention` does it."""
    order = torch.arange(T)
    mask = ((segments[:, :, None] == segments[:, None, :]) & (order[:, None] >= order[None, :]))[:, None]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def causal(q: Tensor, k: Tensor, v: Tensor, _: Tensor) -> Tensor:
    """What a batch of windows with one document each would need."""
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def by_document(q: Tensor, k: Tensor, v: Tensor, segments: Tensor) -> Tensor:
    """Neighbouring windows with one document each together, other windows document by document; causal all."""
    rows: list[tuple[int, list[int]]] = []
    for changes in (segments[:, 1:] != segments[:, :-1]).unbind():
        ends = [0, *(changes.nonzero()[:, 0] + 1).tolist(), T]
        lengths = [end - start for start, end in pairwise(ends)]
        if rows and len(lengths) == len(rows[-1][1]) == 1:
            rows[-1] = rows[-1][0] + 1, lengths
        else:
            rows.append((1, lengths))
    parts = []
    for (_, lengths), *windows in zip(rows, *(x.split([n for n, _ in rows]) for x in (q, k, v)), strict=True):
        documents = zip(*(x.split(lengths, dim=2) for x in windows), strict=True)
        found = [F.scaled_dot_product_attention(*each, is_causal=True) for each in documents]
        parts.append(found[0] if len(found) == 1 else torch.cat(found, dim=2))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def main() -> None:
    """Print medians in milliseconds."""
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    batches = TrainBatches(TokenStore.open(parser.parse_args().data, "train"), T, B, seed=0)
    torch.set_num_threads(1)
    ways = {"masked": masked, "by document": by_document, "causal": causal}
    for dtype in (torch.float32, torch.bfloat16):
        leaves = [torch.randn(B, T, H, K, dtype=dtype, requires_grad=True) for _ in range(3)]
        grad, times = torch.randn(B, H, T, K, dtype=dtype), {name: [] for name in ways}
        for step in range(REPETITIONS + 1):
            segments = batches.at(step).segments
            for name, attend in ways.items():
                start = time.process_time()
                out = attend(*(x.transpose(1, 2) for x in leaves), segments)
                torch.autograd.grad(out, leaves, grad)
                times[name].append(time.process_time() - start)
        print(
            dtype, {name: f"{1e3 * statistics.median(values[1:]):.1f} ms" for name, values in times.items()}, flush=True
        )


if __name__ == "__main__":
    main()
