"""Time the training step of this package's models against other implementations of the same transformer, in pairs.

    python benchmarks/step.py --hf --nanogpt path/to/nanoGPT/model.py

All candidates live in one process and take turns within every round, so a drift of the machine's speed hits all
alike. A step is forward, backward, clipping to norm 1 and AdamW, on random tokens. Reported: the median step, and the
median over rounds of the ratio to each reference. nanoGPT and Hugging Face's GPT-2 have tied heads, biases, learned
positions and LayerNorm; `vector` here has the tied head too, so that all hold the same matrices, and no biases.
`vector-untied` is the paper's baseline. They take torch's fused AdamW.
"""

import argparse
import importlib.util
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from widestream.config import build
from widestream.nn.config import ModelConfig
from widestream.nn.model import build_model
from widestream.train.config import OptimizerConfig
from widestream.train.machine import describe_machine
from widestream.train.optim import build_optimizer, clip_gradients

Step = Callable[[torch.Tensor, torch.Tensor], None]


def model_config(args: argparse.Namespace, stream: dict[str, object], tied: bool) -> ModelConfig:
    """The transformer's sizes with any stream; attention as GPT-2 has it."""
    values = {
        "vocab_size": args.vocab, "context": args.context, "num_layers": args.layers, "num_heads": args.heads,
        "head_dim": args.head_dim, "mlp_dim": 4 * args.heads * args.head_dim, "stream": stream, "tied_head": tied,
        "upcast_attention": False, "inverse_layer_scaling": False, "init": {"scheme": "normal", "std": 0.02},
    }  # fmt: skip
    return build(ModelConfig, values, "model")


def ours(args: argparse.Namespace, stream: dict[str, object], tied: bool) -> Step:
    """A step of this package."""
    model = build_model(model_config(args, stream, tied), device=args.device)
    if args.compile:
        model.compile_blocks()
    optimizer = build_optimizer(model, OptimizerConfig(lr=1e-4))
    parameters = list(model.parameters())

    def step(tokens: torch.Tensor, targets: torch.Tensor) -> None:
        with autocast(args):
            loss = model.loss(tokens, targets).total
        loss.backward()
        clip_gradients(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def theirs(args: argparse.Namespace, model: torch.nn.Module, loss_of: Callable[..., torch.Tensor]) -> Step:
    """A step of another implementation."""
    model = model.to(args.device).train()
    run = torch.compile(model, dynamic=False) if args.compile else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), fused=True)

    def step(tokens: torch.Tensor, targets: torch.Tensor) -> None:
        with autocast(args):
            loss = loss_of(run, tokens, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def nanogpt(args: argparse.Namespace) -> Step:
    """NanoGPT's model.py, from a path."""
    spec = importlib.util.spec_from_file_location("nanogpt_model", args.nanogpt)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    config = module.GPTConfig(
        block_size=args.context, vocab_size=args.vocab, n_layer=args.layers, n_head=args.heads,
        n_embd=args.heads * args.head_dim, dropout=0.0,
    )  # fmt: skip
    return theirs(args, module.GPT(config), lambda model, tokens, targets: model(tokens, targets)[1])


def hugging_face(args: argparse.Namespace) -> Step:
    """Transformers' GPT-2. It shifts its labels itself, so it predicts one token less per row."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=args.vocab, n_positions=args.context, n_layer=args.layers, n_head=args.heads,
        n_embd=args.heads * args.head_dim, embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0, use_cache=False,
    )  # fmt: skip
    return theirs(args, GPT2LMHeadModel(config), lambda model, tokens, targets: model(tokens, labels=tokens).loss)


def autocast(args: argparse.Namespace) -> torch.autocast:
    """Mixed precision, the same for all."""
    return torch.autocast(torch.device(args.device).type, torch.bfloat16, enabled=args.precision == "bf16")


def measure(args: argparse.Namespace, steps: dict[str, Step]) -> dict[str, list[float]]:
    """Seconds of every candidate's step in every round, after warm-up."""
    generator = torch.Generator().manual_seed(0)
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for round_ in range(-args.warmup, args.rounds):
        ids = torch.randint(args.vocab, (args.batch, args.context + 1), generator=generator).to(args.device)
        names = list(steps)
        shift = round_ % len(names)
        for name in names[shift:] + names[:shift]:
            synchronize(args)
            start = time.perf_counter()
            steps[name](ids[:, :-1].contiguous(), ids[:, 1:].contiguous())
            synchronize(args)
            if round_ >= 0:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def synchronize(args: argparse.Namespace) -> None:
    """Wait for the device."""
    if args.device.startswith("cuda"):
        torch.cuda.synchronize()


def parse() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = {"layers": 4, "heads": 12, "head-dim": 64, "context": 256, "batch": 4, "vocab": 50257}
    for name, default in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=f"default {default}")
    parser.add_argument("--key-dims", type=int, nargs="*", default=[32], help="matrix streams to time (default 32)")
    parser.add_argument("--nanogpt", type=Path, help="path of nanoGPT's model.py")
    parser.add_argument("--hf", action="store_true", help="also time transformers' GPT-2")
    parser.add_argument("--precision", choices=["bf16", "float32"], default="bf16")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--compile", action="store_true", help="torch.compile for all candidates")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's choice)")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    return parser.parse_args()


def main() -> None:
    """Time, print, and write JSON if asked."""
    args = parse()
    if args.threads:
        torch.set_num_threads(args.threads)
    steps: dict[str, Step] = {"vector": ours(args, {"kind": "vector"}, tied=True)}
    steps["vector-untied"] = ours(args, {"kind": "vector"}, tied=False)
    for key_dim in args.key_dims:
        steps[f"matrix-{key_dim}-untied"] = ours(args, {"kind": "matrix", "key_dim": key_dim}, tied=False)
    if args.nanogpt:
        steps["nanogpt"] = nanogpt(args)
    if args.hf:
        steps["hf-gpt2"] = hugging_face(args)
    seconds = measure(args, steps)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    ratios = {
        name: {
            reference: statistics.median(a / b for a, b in zip(seconds[name], seconds[reference], strict=True))
            for reference in seconds
            if reference != name
        }
        for name in seconds
    }
    print(f"{'candidate':20s} {'median s':>9s} {'min s':>9s}   median ratio to " + ", ".join(seconds))
    for name, values in seconds.items():
        row = "  ".join(f"{ratios[name].get(reference, 1.0):5.3f}" for reference in seconds)
        print(f"{name:20s} {medians[name]:9.4f} {min(values):9.4f}   {row}")
    if args.json:
        record = {
            "setting": {key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items()},
            "machine": describe_machine(torch.device(args.device)),
            "versions": {"python": platform.python_version(), "torch": torch.__version__},
            "seconds": seconds, "medians": medians, "ratios": ratios,
        }  # fmt: skip
        record["setting"].pop("json")
        record["setting"]["nanogpt"] = bool(args.nanogpt)
        args.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
