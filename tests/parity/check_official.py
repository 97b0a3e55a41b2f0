"""Hold the models against golden cases made by running the authors' own code.

    python tests/parity/check_official.py FOLDER [MEMORY KERNELS]

With these RMT's exchanges are computed as by `train.stream_memory` and `train.kernels`; else as the stream has them.
FOLDER holds pairs NAME.json + NAME.safetensors. Every case found is reported, one line per quantity; the exit code is
1 on a miss or a case that cannot be read, 2 when the folder cannot be used. Tolerances are relative errors
||a - b|| / ||b||.
"""

import importlib.util
import json
import math
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from widestream.model.build import build_model
from widestream.model.decoder import Decoder
from widestream.model.depth import plan_depth
from widestream.recipe.model import InitConfig, ModelConfig, MupConfig
from widestream.recipe.train import OptimizerConfig, ScheduleConfig
from widestream.streams.matrix.rmt import MatrixConfig
from widestream.streams.vector.plain import VectorConfig
from widestream.train.optim import build_optimizer, clip_gradients, set_lr
from widestream.train.schedule import factor

HERE = Path(__file__).resolve().parent
TOLERANCE = {
    "logits": 1e-5, "cross-entropy": 1e-5, "loss": 1e-5, "gradient": 1e-4, "parameter": 1e-5, "output": 1e-5,
    "branch input": 1e-5,
}  # fmt: skip

WAYS = ([], ["states", "fused"], ["writes", "reference"], ["writes", "fused"])
"""What may follow the folder."""

Errors = list[tuple[str, str, float]]
"""(kind of quantity, name, relative error)."""


@dataclass(frozen=True)
class Placed:
    """Where a published parameter lives in our model: per layer, our name and the order of its axes."""

    name: str
    axes: tuple[str, ...]


RMT = {
    "embedding": Placed("embedding.token", ("Vocab", "ResVal", "Rank")),
    "storage_linear": Placed("stream.write_0", ("ResKey", "Rank")),
    "rmt_stack.stacked.attention.module.norm": Placed("stream.norms.{attention}.gain", ("ResVal", "ResKey")),
    "rmt_stack.stacked.attention.module.qkv_linear": Placed("stream.read_{attention}", ("QKV", "Rank", "ResKey")),
    "rmt_stack.stacked.attention.module.out_linear": Placed("stream.write_{mlp}", ("ResKey", "Rank")),
    "rmt_stack.stacked.mlp.module.norm": Placed("stream.norms.{mlp}.gain", ("ResVal", "ResKey")),
    "rmt_stack.stacked.mlp.module.retrieval_linear": Placed("stream.read_{mlp}", ("Rank", "ResKey")),
    "rmt_stack.stacked.mlp.module.W1": Placed("blocks.{mlp}.w1", ("Neuron", "ResVal", "Rank")),
    "rmt_stack.stacked.mlp.module.W2": Placed("blocks.{mlp}.w2", ("ResVal", "Rank", "Neuron")),
    "rmt_stack.stacked.mlp.module.storage_linear": Placed("stream.write_{next}", ("ResKey", "Rank")),
    "norm": Placed("stream.norms.{last}.gain", ("ResVal", "ResKey")),
    "retrieval_linear": Placed("stream.read_{last}", ("Rank", "ResKey")),
    "unembedding": Placed("unembedding", ("Vocab", "ResVal", "Rank")),
}
TRANSFORMER = {
    "embedding": Placed("embedding.token", ("Vocab", "Embed")),
    "transformer_stack.stacked.attention.module.norm": Placed("stream.norms.{attention}.gain", ("Embed",)),
    "transformer_stack.stacked.attention.module.qkv_linear": Placed(
        "blocks.{attention}.qkv", ("QKV", "Head", "HeadDim", "Embed")
    ),
    "transformer_stack.stacked.attention.module.out_linear": Placed(
        "blocks.{attention}.out", ("Embed", "Head", "HeadDim")
    ),
    "transformer_stack.stacked.mlp.module.norm": Placed("stream.norms.{mlp}.gain", ("Embed",)),
    "transformer_stack.stacked.mlp.module.W1": Placed("blocks.{mlp}.w1", ("Neuron", "Embed")),
    "transformer_stack.stacked.mlp.module.W2": Placed("blocks.{mlp}.w2", ("Embed", "Neuron")),
    "norm": Placed("stream.norms.{last}.gain", ("Embed",)),
    "unembedding": Placed("unembedding", ("Vocab", "Embed")),
}
PLACES = {"rmt": RMT, "transformer": TRANSFORMER}


def model_config(meta: dict[str, Any]) -> ModelConfig:
    """The published constructor's arguments as our configuration: the `code` preset at the case's sizes."""
    m = meta["model"]
    init = InitConfig(
        scheme="mup",
        std=m.get("init_std", 0.02),
        query_zero=m.get("query_zero_init", False),
        output_zero=m.get("output_zero_init", False),
    )
    rmt = meta["kind"] == "rmt"
    mup = MupConfig(
        input_multiplier=m.get("input_multiplier", 1.0),
        attention_multiplier=m.get("attn_multiplier", 1.0),
        output_multiplier=m.get("output_multiplier", 1.0),
        base_width=m.get("base_embed_dim"),
        base_num_heads=m.get("base_rank" if rmt else "base_n_heads"),
        base_head_dim=m.get("base_resval_dim" if rmt else "base_head_dim"),
        base_mlp_dim=m.get("base_n_neurons"),
        base_key_dim=m.get("base_reskey_dim"),
    )
    return ModelConfig(
        vocab_size=m["vocab_size"],
        num_layers=m["n_layers"],
        num_heads=m["rank" if rmt else "n_heads"],
        head_dim=m["resval_dim" if rmt else "head_dim"],
        mlp_dim=m["n_neurons"],
        width=None if rmt else m["embed_dim"],
        stream=MatrixConfig(key_dim=m["reskey_dim"]) if rmt else VectorConfig(),
        norm="rmsnorm",
        norm_eps=m.get("rmsnorm_eps", 1e-6),
        positions="alibi",
        init=init,
        mup=mup,
    )


def ours(meta: dict[str, Any], tensors: dict[str, Tensor], prefix: str, model: Decoder) -> dict[str, Tensor]:
    """Published tensors under `prefix` by our parameters' names, in our shapes."""
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    found: dict[str, Tensor] = {}
    for path, place in PLACES[meta["kind"]].items():
        key = f"{path}.param.weight"
        axes, tensor = list(meta["axes"][key]), tensors[f"{prefix}/{key}"]
        layered = "Layer" in axes
        order = [axes.index(axis) for axis in ((("Layer",) if layered else ()) + place.axes)]
        tensor = tensor.permute(order)
        for layer, piece in enumerate(tensor if layered else [tensor]):
            sites = {"attention": 2 * layer, "mlp": 2 * layer + 1, "next": 2 * layer + 2, "last": len(model.blocks)}
            name = place.name.format(**sites)
            found[name] = piece.reshape(shapes[name])
    missing = shapes.keys() - found.keys()
    if missing:
        raise ValueError(f"the case lacks values for {', '.join(sorted(missing))}")
    return found


def relative_error(a: Tensor | float, b: Tensor | float) -> float:
    """||a - b|| / ||b||, in float64; where b is zero, ||a||."""
    x, y = (torch.as_tensor(value, dtype=torch.float64) for value in (a, b))
    norm = y.norm().item()
    return (x - y).norm().item() / (norm or 1.0)


def check_decoder(meta: dict[str, Any], tensors: dict[str, Tensor], memory: Any = None, kernels: Any = None) -> Errors:
    """Errors of one rmt or transformer case: (kind of quantity, name, relative error)."""
    config, depth = model_config(meta), None
    if memory is not None and meta["kind"] == "rmt":
        depth = plan_depth(config, torch.device("cpu"), memory, kernels=kernels)
    model = build_model(config, depth=depth)
    model.load_state_dict(ours(meta, tensors, "param", model))
    tokens, targets, mask = tensors["input_ids"].long(), tensors["target_ids"].long(), tensors["attention_mask"].bool()
    errors: Errors = []
    with torch.no_grad():
        logits = model.logits(model(tokens, mask=mask))
    order = [meta["logits_axes"].index(axis) for axis in ("Batch", "Pos", "Vocab")]
    errors.append(("logits", "logits", relative_error(logits, tensors["logits"].permute(order))))

    optimizer_config = OptimizerConfig(
        lr=meta["lr"], beta1=meta["b1"], beta2=meta["b2"], eps=meta["eps"],
        weight_decay=meta["weight_decay"], decay="independent", grad_clip=meta["grad_clip"],
    )  # fmt: skip
    schedule = ScheduleConfig(kind="cosine", warmup=meta["warmup_steps"], floor=meta["end_value"])
    optimizer = build_optimizer(model, optimizer_config)
    after, steps = last_parameters(tensors)
    for step in range(steps + 1):
        optimizer.zero_grad(set_to_none=True)
        terms = model.loss(tokens, targets, mask=mask, z_loss=meta["z_loss_alpha"])
        terms.total.backward()
        errors.append(("loss", f"loss before step {step}", relative_error(terms.total.item(), meta["losses"][step])))
        if step == 0:
            errors.append(
                ("cross-entropy", "cross-entropy", relative_error(terms.cross_entropy.item(), meta["ce_loss"]))
            )
            golden = ours(meta, tensors, "grad", model)
            grads = {name: parameter.grad for name, parameter in model.named_parameters()}
            errors += [("gradient", name, relative_error(grads[name], golden[name])) for name in golden]  # pyright: ignore[reportArgumentType]
        if step < steps:
            clip_gradients(model.parameters(), optimizer_config.grad_clip)
            set_lr(optimizer, factor(step, meta["decay_steps"], schedule))
            optimizer.step()
    golden = ours(meta, tensors, after, model)
    reached = dict(model.named_parameters())
    return errors + [("parameter", name, relative_error(reached[name].detach(), golden[name])) for name in golden]


def last_parameters(tensors: dict[str, Tensor]) -> tuple[str, int]:
    """Prefix of the parameters at the end, `param_after_N_steps`, and N."""
    found = [match for name in tensors if (match := re.match(r"param_after_(\d+)_steps(?=/)", name))]
    if not found:
        raise ValueError("the case has no tensor param_after_N_steps/...")
    return found[0][0], int(found[0][1])


def checker(kind: str, *way: str) -> Callable[[dict[str, Any], dict[str, Tensor]], Errors] | None:
    """The function that compares cases of this kind: `check_decoder`, or `check` of case_<kind>.py beside this file."""
    if kind in PLACES:
        return lambda meta, tensors: check_decoder(meta, tensors, *way)
    path = HERE / f"case_{kind}.py"
    if not re.fullmatch(r"\w+", kind) or not path.is_file():
        return None
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.check


def check_case(path: Path, *way: str) -> bool | None:
    """Print one case's lines. Returns whether it matched, or None where the case cannot be served yet."""
    name = f"{path.stem:24s}"
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
        kind = meta["kind"]
        check = checker(kind, *way)
        if check is None:
            print(f"{name} not served yet: no counterpart of kind {kind!r}")
            return None
        errors = check(meta, load_file(path.with_suffix(".safetensors")))
    except (OSError, ValueError, LookupError, TypeError, RuntimeError, SafetensorError) as error:
        print(f"{name} cannot be compared: {type(error).__name__}: {error}")
        return False
    matched = bool(errors)
    for kind, tolerance in TOLERANCE.items():
        of_kind = [(error, what) for k, what, error in errors if k == kind]
        if not of_kind:
            continue
        error, what = max(of_kind, key=lambda pair: math.inf if math.isnan(pair[0]) else pair[0])
        good = error <= tolerance  # NaN is not
        matched &= good
        figures = f"worst {error:.1e} of {tolerance:.0e} ({what})"
        print(f"{name} {kind:14s} {len(of_kind):3d} compared, {figures} {'ok' if good else 'MISS'}")
    return matched


def main(arguments: list[str]) -> int:
    """Check every case of the folder; returns the exit code."""
    if not arguments or not Path(arguments[0]).is_dir() or arguments[1:] not in WAYS:
        print(
            "usage: python tests/parity/check_official.py FOLDER [states fused | writes reference | writes fused]   "
            "(a folder of NAME.json + NAME.safetensors)",
            file=sys.stderr,
        )
        return 2
    folder = Path(arguments[0])
    halves = {suffix: {path.stem for path in folder.glob(f"*{suffix}")} for suffix in (".json", ".safetensors")}
    for suffix, names in halves.items():
        for name in sorted(names - set.intersection(*halves.values())):
            print(f"{name:24s} no case: {name}{suffix} stands alone")
    paths = [folder / f"{name}.json" for name in sorted(set.intersection(*halves.values()))]
    if not paths:
        print(f"no cases (NAME.json + NAME.safetensors) in {folder}", file=sys.stderr)
        return 2
    results = [check_case(path, *arguments[1:]) for path in paths]
    served = [result for result in results if result is not None]
    print(f"{sum(served)} of {len(served)} cases match; {len(results) - len(served)} not served yet")
    return 0 if all(served) and served else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
