"""Time the training step of this package's models against other implementations of the same transformer, in pairs.

    python benchmarks/step.py --hf --nanogpt path/to/nanoGPT/model.py
    python benchmarks/step.py --modern --hf

All candidates live in one process and take turns within every round, so a drift of the machine's speed hits all
alike. A step is forward, backward, clipping to norm 1 and AdamW, on random tokens. Reported: the median step, and the
median over rounds of the ratio to each reference. nanoGPT and Hugging Face's GPT-2 have tied heads, biases, learned
positions and LayerNorm; `vector` here has the tied head too, so that all hold the same matrices, and no biases.
`vector-untied` is the paper's baseline. They take torch's fused AdamW.

With `--modern` blocks are those of recipes/preset/modern (RMSNorm, rotary positions, QK-norm, SwiGLU, grouped queries),
and Hugging Face's model is a Llama of the same shape, which has no QK-norm.
"""

import argparse
import importlib
import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from widestream.bench.models import ModelSettings, Sizes, build_measured, model_config
from widestream.bench.paired import medians, ratios
from widestream.bench.record import make_record
from widestream.bench.step import Step, StepSettings, own_step, time_steps
from widestream.machine import autocast
from widestream.recipe import load_recipe
from widestream.recipe.model import ModelConfig


def ours(args: argparse.Namespace, settings: StepSettings, stream: dict[str, object], tied: bool) -> Step:
    """A step of this package."""
    config = modern(args, stream, tied) if args.modern else model_config(settings.models.sizes, stream, tied)
    return own_step(build_measured(config, settings.models, torch.device(args.device)), args.precision)


def modern(args: argparse.Namespace, stream: dict[str, object], tied: bool) -> ModelConfig:
    """Today's blocks at these sizes, as the recipes have them."""
    values = {**shape_of(args), "tied_head": tied}
    if stream["kind"] == "matrix":
        values["stream.key_dim"] = stream["key_dim"]
    recipe = "modern/rmt" if stream["kind"] == "matrix" else "modern/transformer"
    return load_recipe(recipe, [f"model.{name}={value}" for name, value in values.items()]).model


def shape_of(args: argparse.Namespace) -> dict[str, int]:
    """A modern model's shape, by the names of a recipe: an MLP of 8/3 of the width, in whole steps of 256."""
    width = args.heads * args.head_dim
    return {
        "vocab_size": args.vocab, "context": args.context, "num_layers": args.layers, "num_heads": args.heads,
        "num_kv_heads": args.kv_heads or args.heads, "head_dim": args.head_dim, "mlp_dim": -(-8 * width // 768) * 256,
    }  # fmt: skip


def theirs(args: argparse.Namespace, model: torch.nn.Module, loss_of: Callable[..., torch.Tensor]) -> Step:
    """A step of another implementation."""
    model = model.to(args.device).train()
    run = torch.compile(model, dynamic=False) if args.compile else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), fused=True)

    def step(tokens: torch.Tensor, targets: torch.Tensor) -> None:
        with autocast(torch.device(args.device), args.precision):
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
    transformers = importlib.import_module("transformers")  # needed, and installed, for this comparison alone
    config = transformers.GPT2Config(
        vocab_size=args.vocab, n_positions=args.context, n_layer=args.layers, n_head=args.heads,
        n_embd=args.heads * args.head_dim, embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0, use_cache=False,
    )  # fmt: skip
    return theirs(
        args, transformers.GPT2LMHeadModel(config), lambda model, tokens, targets: model(tokens, labels=tokens).loss
    )


def llama(args: argparse.Namespace) -> Step:
    """Transformers' Llama with a tied head and SDPA. It shifts its labels itself too."""
    transformers = importlib.import_module("transformers")
    shape = shape_of(args)
    config = transformers.LlamaConfig(
        vocab_size=shape["vocab_size"], max_position_embeddings=shape["context"],
        hidden_size=shape["num_heads"] * shape["head_dim"], intermediate_size=shape["mlp_dim"],
        num_hidden_layers=shape["num_layers"], num_attention_heads=shape["num_heads"],
        num_key_value_heads=shape["num_kv_heads"], head_dim=shape["head_dim"], rms_norm_eps=1e-6,
        tie_word_embeddings=True, use_cache=False, attn_implementation="sdpa",
    )  # fmt: skip
    return theirs(
        args, transformers.LlamaForCausalLM(config), lambda model, tokens, targets: model(tokens, labels=tokens).loss
    )


def parse() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = {"layers": 4, "heads": 12, "head-dim": 64, "context": 256, "batch": 4, "vocab": 50257}
    for name, default in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=f"default {default}")
    parser.add_argument("--key-dims", type=int, nargs="*", default=[32], help="matrix streams to time (default 32)")
    parser.add_argument("--nanogpt", type=Path, help="path of nanoGPT's model.py")
    parser.add_argument("--hf", action="store_true", help="also time transformers' GPT-2, with --modern its Llama")
    parser.add_argument("--modern", action="store_true", help="today's blocks in place of GPT-2's")
    parser.add_argument("--kv-heads", type=int, help="with --modern: heads of keys and values (default: --heads)")
    parser.add_argument("--precision", choices=["bf16", "float32"], default="bf16")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--compile", action="store_true", help="torch.compile for all candidates")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's choice)")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    args = parser.parse_args()
    if args.modern and args.nanogpt:
        parser.error("--nanogpt has GPT-2's blocks; leave it or --modern out")
    if args.kv_heads and not args.modern:
        parser.error("--kv-heads is for --modern")
    return args


def settings_of(args: argparse.Namespace) -> StepSettings:
    """The same for the package's own models."""
    sizes = Sizes(
        num_layers=args.layers, num_heads=args.heads, head_dim=args.head_dim, vocab_size=args.vocab,
        context=args.context, batch_size=args.batch,
    )  # fmt: skip
    models = ModelSettings(
        sizes=sizes, key_dims=tuple(args.key_dims), device=args.device, precision=args.precision,
        threads=args.threads, compile=args.compile,
    )  # fmt: skip
    return StepSettings(models=models, rounds=args.rounds, warmup=args.warmup)


def main() -> None:
    """Time, print, and write JSON if asked."""
    args = parse()
    if args.threads:
        torch.set_num_threads(args.threads)
    settings = settings_of(args)
    steps: dict[str, Step] = {"vector": ours(args, settings, {"kind": "vector"}, tied=True)}
    steps["vector-untied"] = ours(args, settings, {"kind": "vector"}, tied=False)
    for key_dim in args.key_dims:
        stream = {"kind": "matrix", "key_dim": key_dim}
        steps[f"matrix-{key_dim}-untied"] = ours(args, settings, stream, tied=False)
    if args.nanogpt:
        steps["nanogpt"] = nanogpt(args)
    if args.hf:
        steps["hf-llama" if args.modern else "hf-gpt2"] = llama(args) if args.modern else hugging_face(args)
    device = torch.device(args.device)
    seconds = time_steps(steps, settings.models.sizes, args.rounds, args.warmup, device)
    middle, relative = medians(seconds), ratios(seconds, seconds)
    print(f"{'candidate':20s} {'median s':>9s} {'min s':>9s}   median ratio to " + ", ".join(seconds))
    for name, values in seconds.items():
        row = "  ".join(f"{relative[name].get(reference, 1.0):5.3f}" for reference in seconds)
        print(f"{name:20s} {middle[name]:9.4f} {min(values):9.4f}   {row}")
    if args.json:
        shape = {"modern": shape_of(args)} if args.modern else {}
        record = make_record("step", settings, device, seconds=seconds, medians=middle, ratios=relative, **shape)
        args.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
