"""All that a GPU has to tell, in one run of under eight minutes: figures into a JSON file, a table to the screen.

    python benchmarks/gpu_suite.py                        # benchmarks/results/gpu-<name of the GPU>.json
    python benchmarks/gpu_suite.py --parts steps,decode --sizes rmt-305m
    TRITON_INTERPRET=1 python benchmarks/gpu_suite.py --quick --device cpu --json quick.json

Parts: `checks` (kernels and FlexAttention against float64), `kernels` (time against what a copy of the same bytes
takes), `steps` (whole training steps of RMT and transformer in turns, at the paper's four sizes; with documents masked,
FlexAttention and SDPA), `modern` (the same on today's blocks), `decode`, `memory` (against D_k), `tuning` (other
launches of the kernels). Every part has a share of the time; what fails or does not fit is written down as such, and
the file is brought up to date after every figure. Needs torch, numpy, pyyaml and tqdm, and triton for the kernels.
"""

from gpu_run import ROOT, Suite, copy_bandwidth, describe, seconds, wait  # first: it says which package is missing

# isort: split
import argparse
import itertools
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from gpu_attention import check_attention, documents
from widestream.blocks.attention_kind import Attention
from widestream.errors import UserError
from widestream.generate.sampling import SamplingConfig, generate
from widestream.kernels.exchange import Exchange, KernelSetting
from widestream.kernels.exchange_triton import TritonExchange, Tuning, available
from widestream.machine import matmul_peak
from widestream.model.build import build_model
from widestream.model.decoder import Decoder
from widestream.model.depth import plan_depth
from widestream.model.depth.plan import Memory, Precision
from widestream.recipe import load_recipe
from widestream.recipe.model import ModelConfig
from widestream.recipe.train import OptimizerConfig
from widestream.testing.kernels import Case, draw, errors, grid
from widestream.train.optim import build_optimizer, clip_gradients

SIZES = {"rmt-46m": "transformer-49m", "rmt-134m": "transformer-160m", "rmt-206m": "transformer-260m",
         "rmt-305m": "transformer-405m"}  # fmt: skip
"""The paper's four sizes: RMT, and the transformer it is compared with."""
SHARES = {"checks": 95, "kernels": 60, "steps": 170, "modern": 45, "decode": 25, "memory": 40, "tuning": 40}
"""Seconds of every part."""
FLOAT32, BF16 = torch.float32, torch.bfloat16
TINY = ["vocab_size=97", "context=16", "num_layers=1", "num_heads=2", "head_dim=16", "mlp_dim=64"]
MODERN = ["num_layers=12", "num_heads=12", "head_dim=64", "mlp_dim=2048", "context=512", "vocab_size=50304"]
"""GPT-2 small's shape for today's blocks, whose MLPs have three matrices."""


@dataclass(frozen=True)
class Variant:
    """A way to train the same model."""

    name: str
    streams: tuple[str, ...] = ("matrix", "vector")
    compiled: bool = False
    memory: Memory = "states"
    kernels: KernelSetting = "reference"
    state_precision: Precision = "float32"

    @property
    def asked_first(self) -> bool:
        """Whether it is what the kernels are for."""
        return self.compiled and self.memory == "writes"


PLAIN = Variant("eager")
VARIANTS = (
    Variant(
        "fused, compiled, bf16 state", ("matrix",), compiled=True, memory="writes", kernels="fused",
        state_precision="bf16",
    ),
    Variant("fused, compiled", ("matrix",), compiled=True, memory="writes", kernels="fused"),
    Variant("compiled", compiled=True),
    Variant("compiled, states, fused", ("matrix",), compiled=True, kernels="fused"),
    Variant("fused", ("matrix",), memory="writes", kernels="fused"),
    Variant("fused, bf16 state", ("matrix",), memory="writes", kernels="fused", state_precision="bf16"),
    PLAIN,
)  # fmt: skip


def make_model(
    recipe: str,
    suite: Suite,
    variant: Variant = PLAIN,
    *,
    key_dim: int | None = None,
    kv_heads: int | None = None,
    attention: Attention = "sdpa",
) -> Decoder:
    """A model of one of the paper's sizes, or on today's blocks (`modern/...`), set up to train in one way.

    Attention is not upcast, as in GPT-2.
    """
    config = make_config(recipe, suite, key_dim, kv_heads)
    kernels: KernelSetting = "auto" if suite.quick and variant.kernels == "fused" else variant.kernels
    options: dict[str, Any] = {"backend": "aot_eager"} if suite.quick else {}
    depth = plan_depth(
        config, suite.device, variant.memory, 0, kernels, variant.state_precision, compiled=variant.compiled, **options
    )
    return build_model(config, device=suite.device, depth=depth, attention=attention)


def make_config(recipe: str, suite: Suite, key_dim: int | None = None, kv_heads: int | None = None) -> ModelConfig:
    """Sizes of a recipe of the paper; tiny ones in a quick run. Documents are masked where a step has any."""
    modern = recipe.startswith("modern/")
    changes = [
        "upcast_attention=false",
        "document_mask=true",
        *(MODERN if modern else []),
        *(TINY if suite.quick else []),
    ]
    if kv_heads:
        changes.append(f"num_kv_heads={kv_heads}")
    if "rmt" in recipe:
        key_dim = key_dim or (16 if suite.quick else None)
        changes += [] if key_dim is None else [f"stream.key_dim={key_dim}"]
    name = recipe if modern else f"paper/{recipe}"
    return load_recipe(name, [f"model.{change}" for change in changes]).model


def make_step(model: Decoder, suite: Suite, segments: torch.Tensor | None = None) -> Callable[[], None]:
    """Forward, backward, clipping and fused AdamW on random tokens, under bf16 autocast."""
    optimizer, parameters = build_optimizer(model, OptimizerConfig(lr=1e-4)), list(model.parameters())
    shape = (suite.batch, model.config.context + 1)
    ids = torch.randint(model.config.vocab_size, shape, device=suite.device)
    tokens, targets = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()

    def step() -> None:
        with torch.autocast(suite.device.type, BF16):
            loss = model.loss(tokens, targets, segments).total
        loss.backward()
        clip_gradients(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def named(case: Case) -> dict[str, Any]:
    return {key: str(value).removeprefix("torch.") for key, value in asdict(case).items()}


def check_kernels(suite: Suite) -> None:
    """The shapes of the paper first, then others, as many as there is time for (each has to be compiled)."""
    shapes = [(1000, 64, 64, 16), (1000, 64, 32, 12), (999, 64, 48, 14), (1001, 32, 32, 12), (301, 64, 512, 16),
              (301, 24, 40, 3), (130, 128, 256, 8), (77, 16, 16, 16), (1, 96, 80, 5)]  # fmt: skip
    exchange = suite.fused()
    for case in grid([(2, 16, 16, 3)] if suite.quick else shapes):

        def measure(case: Case = case) -> dict[str, Any]:
            found = errors(exchange, case, suite.device)
            return {"case": named(case), "errors": found, "ok": max(found.values()) < case.tolerance}

        suite.attempt(str(named(case)), measure)


def time_kernels(suite: Suite) -> None:
    """Times of both passes, as the fraction of a copy's bandwidth that their least traffic amounts to."""
    shapes = [(64, 64, 16), (64, 32, 12), (64, 48, 14), (32, 32, 12), (64, 16, 16), (64, 128, 16), (64, 512, 16)]
    shapes = [(16, 16, 2)] if suite.quick else shapes
    exchange, count = suite.fused(), 2**14
    cases = [
        Case(2 if suite.quick else count * 4096 // (V * K), V, K, R, roles, heads_first=roles == 3,
             state=state, gradient=state, vectors=BF16)
        for (V, K, R), state, roles in itertools.product(shapes, (FLOAT32, BF16), (3, 1))
    ]  # fmt: skip
    for case in [*cases, replace(cases[0], vectors=FLOAT32)]:
        suite.attempt(str(named(case)), lambda case=case: time_case(suite, exchange, case))


def time_case(suite: Suite, exchange: Exchange, case: Case) -> dict[str, Any]:
    """Seconds, bytes that have to move, and the fraction of the measured copy bandwidth."""
    x = draw(case, suite.device)
    state, vectors = x.state.nbytes, x.out.nbytes + (x.data.nbytes if x.data is not None else 0)
    own_gradients = x.grad_data.nbytes if x.grad_data is not None else 0
    least = {"forward": 2 * state + vectors, "backward": 2 * (state + x.grad_state.nbytes) + vectors + own_gradients}
    calls = {
        "forward": lambda: exchange.forward_(x.state, x.data, x.site, x.out),
        "backward": lambda: exchange.backward_(x.state, x.grad_state, x.data, x.site, x.grad_out, x.grad_data),
    }
    found: dict[str, Any] = {"case": named(case)}
    for name, call in calls.items():
        time_ = seconds(suite, call, repeat=20)
        fraction = least[name] / time_ / suite.record["copy_bytes_per_second"]
        found[name] = {"seconds": time_, "bytes": least[name], "fraction_of_copy": fraction}
    return found


def check(suite: Suite) -> None:
    """Attention first: it is few cases."""
    check_attention(suite)
    check_kernels(suite)


def time_steps(suite: Suite) -> None:
    """For every variant and size, RMT and transformer in turns.

    What is asked first comes first: the first size compiled and fused. Then what needs no compiling, at all sizes; then
    FlexAttention and SDPA in turns, at the last size (the smallest, made soonest); then the rest.
    """
    pairs = [(variant, rmt) for rmt in suite.sizes for variant in VARIANTS]
    first = [(variant, rmt) for variant, rmt in pairs if variant.asked_first and rmt == suite.sizes[0]]
    soon = [pair for pair in pairs if not pair[0].compiled]

    def attempt(pairs: list[tuple[Variant, str]]) -> None:
        for variant, rmt in pairs:
            suite.attempt(f"{variant.name} {rmt}", lambda v=variant, r=rmt: time_pair(suite, v, r))

    attempt(first)
    attempt(soon)
    suite.attempt("documents", lambda: time_documents(suite, SIZES[suite.sizes[-1]]))
    attempt([pair for pair in pairs if pair not in first + soon])


def time_documents(suite: Suite, recipe: str) -> dict[str, Any]:
    """Compiled steps of the transformer with documents masked: by SDPA and, on a GPU, by FlexAttention."""
    kinds: tuple[Attention, ...] = ("flex", "sdpa") if suite.device.type == "cuda" else ("sdpa",)
    compiled = replace(PLAIN, name="compiled, documents", compiled=True)
    models = {kind: make_model(recipe, suite, compiled, attention=kind) for kind in kinds}
    segments = documents(suite.batch, models["sdpa"].config.context, suite.device)
    return {"size": recipe, "variant": compiled.name, **time_in_turns(suite, models, segments)}


def time_pair(suite: Suite, variant: Variant, rmt: str) -> dict[str, Any]:
    """RMT and transformer. A variant of RMT alone meets the plain transformer."""
    models = {
        "rmt": make_model(rmt, suite, variant),
        "transformer": make_model(SIZES[rmt], suite, replace(PLAIN, compiled=variant.compiled)),
    }
    return {"size": rmt, "variant": variant.name, **time_in_turns(suite, models)}


def time_modern(suite: Suite) -> None:
    """RMT and transformer on today's blocks, with as many heads of keys and values as of queries, and with fewer."""
    for variant, kv_heads in itertools.product(VARIANTS, (2, 1) if suite.quick else (12, 4)):

        def measure(variant: Variant = variant, kv_heads: int = kv_heads) -> dict[str, Any]:
            plain = replace(PLAIN, compiled=variant.compiled)
            models = {
                "rmt": make_model("modern/rmt", suite, variant, kv_heads=kv_heads),
                "transformer": make_model("modern/transformer", suite, plain, kv_heads=kv_heads),
            }
            return {"size": f"modern, {kv_heads} kv heads", "variant": variant.name, **time_in_turns(suite, models)}

        suite.attempt(f"{variant.name} modern, {kv_heads} kv heads", measure)


def time_in_turns(suite: Suite, models: dict[str, Decoder], segments: torch.Tensor | None = None) -> dict[str, Any]:
    """Median time of a step of each, and the median over rounds of the first one's time over the last one's."""
    torch._dynamo.reset()  # versions of earlier models count towards its limits, and each is looked at in every call
    start = time.perf_counter()
    steps = {}
    for name, model in models.items():
        steps[name] = make_step(model, suite, segments)
        steps[name]()
    wait(suite.device)
    making = time.perf_counter() - start
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(2 if suite.quick else 10):
        for name, step in steps.items():
            times[name].append(seconds(suite, step, rounds=1, repeat=1))
    first, *_, last = *times.values(), *times.values()
    return {
        "tokens": suite.batch * next(iter(models.values())).config.context, "setup_seconds": making,
        "median_seconds": {name: statistics.median(values) for name, values in times.items()},
        "ratio": statistics.median(a / b for a, b in zip(first, last, strict=True)),
    }  # fmt: skip


def time_decode(suite: Suite) -> None:
    """Greedy tokens per second, one text at a time, as sampling does it."""
    for recipe in itertools.chain.from_iterable((size, SIZES[size]) for size in suite.sizes):

        def measure(recipe: str = recipe) -> dict[str, Any]:
            model = make_model(recipe, suite).eval()
            config = SamplingConfig(max_new_tokens=4 if suite.quick else 64, temperature=0)
            with torch.autocast(suite.device.type, BF16):
                time_ = seconds(suite, lambda: generate(model, [1] * 8, config), rounds=3, repeat=1)
            return {"model": recipe, "tokens_per_second": config.max_new_tokens / time_}

        suite.attempt(recipe, measure)


def measure_memory(suite: Suite) -> None:
    """Bytes that autograd keeps and, on a GPU, peak memory of a step, at GPT2-small dims over D_k."""
    ways = [variant for variant in VARIANTS if "matrix" in variant.streams and not variant.compiled]
    for key_dim, way in itertools.product((16, 32) if suite.quick else (32, 256, 16, 512, 64, 128), ways):

        def measure(key_dim: int = key_dim, way: Variant = way) -> dict[str, Any]:
            model = make_model("rmt-134m", suite, way, key_dim=key_dim)
            step, kept = make_step(model, suite), {}

            def keep(x: torch.Tensor) -> torch.Tensor:
                kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
                return x

            step()
            weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
                step()
            peak = None
            if suite.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
                step()
                peak = torch.cuda.max_memory_allocated()
            saved = sum(size for at, size in kept.items() if at not in weights)
            return {"key_dim": key_dim, "variant": way.name, "saved_bytes": saved, "peak_bytes": peak}

        suite.attempt(f"D_k {key_dim}, {way.name}", measure)


def tune(suite: Suite) -> None:
    """Other launches of the kernels on GPT2-medium's exchange in front of attention, and faster products of float32."""
    case = Case(2 if suite.quick else 2**14, 64, 64, 16, 3, heads_first=True, vectors=BF16)
    if suite.quick:
        case = replace(case, V=16, K=16, R=2)
    exact = (Tuning(float32_dot="tf32x3"), replace(case, vectors=FLOAT32))
    cases = [replace(case, state=state, gradient=state) for state in (BF16, FLOAT32)]
    trials = [*itertools.product(tunings(), cases), exact]
    for tuning, case in itertools.islice(trials, 1 if suite.quick else None):

        def measure(tuning: Tuning = tuning, case: Case = case) -> dict[str, Any]:
            if available(suite.device) and suite.quick:
                return {"tuning": asdict(tuning), "case": named(case)}
            worst = max(errors(TritonExchange(tuning), replace(case, N=min(case.N, 500)), suite.device).values())
            return {"tuning": asdict(tuning), "error": worst, **time_case(suite, TritonExchange(tuning), case)}

        suite.attempt(f"{case.state} {asdict(tuning)}", measure)


def tunings() -> Iterator[Tuning]:
    """What counting in compiled code cannot settle, the most telling first."""
    usual = Tuning()
    yield usual
    changes = (
        {"stages": 3},  # the next token's loads under way while this one's products run; more spills
        {"programs": 1, "stages": 3},
        {"programs": 1},  # how much of the time is waiting for memory
        {"cells_per_warp": 512},  # twice the warps
        {"programs": 4},  # fits forward; spills backward
        {"stages": 2},
        {"programs": 3},
    )
    for change in changes:
        yield replace(usual, forward=replace(usual.forward, **change), backward=replace(usual.backward, **change))


def print_table(record: dict[str, Any]) -> None:
    """What matters, a line each."""
    checks = record.get("checks", [])
    print(f"\nchecks: {sum(row['ok'] for row in checks)} of {len(checks)} within tolerance")
    for row in record.get("kernels", []):
        case = row["case"]
        parts = "  ".join(f"{name} {row[name]['fraction_of_copy']:.2f}" for name in ("forward", "backward"))
        print(f"V {case['V']} K {case['K']} R {case['R']} x{case['roles']} {case['state']}: of a copy's speed {parts}")
    for row in (*record.get("steps", []), *record.get("modern", [])):
        times = "  ".join(f"{name} {1e3 * value:.1f} ms" for name, value in row["median_seconds"].items())
        print(f"{row['size']:19s} {row['variant']:28s} {times}  ratio {row['ratio']:.3f}")
    for row in record.get("decode", []):
        print(f"{row['model']:17s} {row['tokens_per_second']:.0f} tokens/s")
    for row in record.get("memory", []):
        peak = "" if row["peak_bytes"] is None else f", peak {row['peak_bytes'] / 2**20:.0f} MiB"
        print(f"D_k {row['key_dim']:3d} {row['variant']:18s} saved {row['saved_bytes'] / 2**20:.1f} MiB{peak}")
    for key in ("failures", "left_out"):
        print(f"{key.replace('_', ' ')}: {len(record.get(key, []))}")


PARTS: dict[str, Callable[[Suite], None]] = {
    "checks": check, "kernels": time_kernels, "steps": time_steps, "modern": time_modern,
    "decode": time_decode, "memory": measure_memory, "tuning": tune,
}  # fmt: skip


def parse() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: tries the script, measures nothing")
    parser.add_argument("--parts", default=",".join(PARTS), help="which, in which order (default: all)")
    parser.add_argument("--sizes", default=",".join(reversed(SIZES)), help="of the paper, for steps and decode")
    parser.add_argument("--batch", type=int, help="sequences of 512 per step (default 16)")
    parser.add_argument(
        "--seconds", type=float, default=sum(SHARES.values()), help="for all parts (default %(default)s)"
    )
    parser.add_argument("--json", type=Path, help="the file written")
    return parser.parse_args()


def main() -> None:
    """Run the parts."""
    args = parse()
    device = torch.device(args.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        sys.exit("There is no CUDA device here; try the script with --quick --device cpu.")
    parts, sizes = args.parts.split(","), args.sizes.split(",")
    if unknown := [*({*parts} - {*PARTS}), *({*sizes} - {*SIZES})]:
        sys.exit(f"Unknown: {', '.join(unknown)}. Parts: {', '.join(PARTS)}. Sizes: {', '.join(SIZES)}.")
    record = {"quick": args.quick, **describe(device)}
    slug = re.sub(r"[^a-z0-9]+", "-", (record["machine"]["gpu"] or "cpu").lower()).strip("-")
    path = args.json or ROOT / "benchmarks" / "results" / f"gpu-{slug}.json"
    suite = Suite(device, args.quick, sizes, args.batch or (1 if args.quick else 16), path, record)
    record["batch"], record["copy_bytes_per_second"] = suite.batch, copy_bandwidth(suite)
    record["matmul_peak_bf16"] = None if args.quick else matmul_peak(device, "bf16")
    whole = sum(SHARES[part] for part in parts)
    for part in parts:
        suite.part, suite.deadline = part, time.perf_counter() + args.seconds * SHARES[part] / whole
        print(f"{part} ...", flush=True)
        try:
            PARTS[part](suite)
        except UserError as problem:
            suite.add("failures", {"part": part, "what": "all", "error": str(problem)})
        if device.type == "cuda":
            torch.cuda.empty_cache()
    print_table(record)
    print(f"written: {path}")


if __name__ == "__main__":
    main()
