"""Bytes that streams keep, and CPU time of forward and backward pass, with states saved and replayed (float32)."""

import json
import statistics
import sys
import time

import torch

from widestream.bench.memory import saved_bytes
from widestream.bench.models import ModelSettings, Sizes, build_measured, model_config
from widestream.model.decoder import Decoder

SIZES = Sizes(num_layers=12, vocab_size=512, context=32, batch_size=1)
STREAMS = {
    "mhc": {"kind": "mhc"},
    "hyper_connections": {"kind": "hyper_connections"},
    "attn_res, groups of 4": {"kind": "attn_res", "group_size": 4},
    "depth_attention": {"kind": "depth_attention"},
}
REPETITIONS = 3


def step_seconds(model: Decoder, tokens: torch.Tensor) -> float:
    """CPU time of this process, which other work on the machine hardly changes."""
    model.zero_grad()
    start = time.process_time()
    model.loss(tokens, tokens).total.backward()
    return time.process_time() - start


def main() -> None:
    """Print one JSON line per stream."""
    torch.set_num_threads(1)
    tokens = torch.randint(SIZES.vocab_size, (SIZES.batch_size, SIZES.context))
    for name in sys.argv[1:] or STREAMS:
        times: dict[str, list[float]] = {"states": [], "writes": []}
        kept, models = {}, {}
        for memory in times:
            settings = ModelSettings(sizes=SIZES, stream_memory=memory)
            models[memory] = build_measured(model_config(SIZES, STREAMS[name]), settings, torch.device("cpu"))
            kept[memory] = saved_bytes(models[memory], SIZES, "float32").stream // tokens.numel()
        cost = models["writes"].stream.cost()
        for repetition in range(REPETITIONS + 1):
            for memory, model in models.items():
                seconds = step_seconds(model, tokens)
                if repetition:
                    times[memory].append(seconds)
        medians = {memory: statistics.median(values) for memory, values in times.items()}
        declared = {"states": cost.bytes_saved, "writes": cost.bytes_saved_writes}
        print(json.dumps({"stream": name, "kept": kept, "declared": declared, "seconds": medians}), flush=True)


if __name__ == "__main__":
    main()
