"""Golden cases of kind `hyper_connections`: our lanes, driven by toy branches that get them without the norm."""

from typing import Any

import torch
from torch import Tensor

from widestream.model.build import build_model
from widestream.recipe import build
from widestream.recipe.model import ModelConfig
from widestream.streams.lanes.hyper_connections import HyperConnectionsStream


def stream_of(meta: dict[str, Any]) -> HyperConnectionsStream:
    """Our stream with twice as many sites as the case, whose number may be odd; the rest stays unused."""
    sizes = {"vocab_size": 2, "num_layers": meta["num_sites"], "num_heads": 1, "head_dim": meta["dim"], "mlp_dim": 1}
    stream = {"lanes": meta["num_streams"], "dynamic": meta["dynamic"], "tanh": meta["tanh"]}
    values = sizes | {"norm": "rmsnorm", "norm_eps": 1e-12, "stream": {"kind": "hyper_connections"} | stream}
    built = build_model(build(ModelConfig, values, "model")).stream
    assert isinstance(built, HyperConnectionsStream)
    return built


def ours(tensors: dict[str, Tensor], prefix: str, meta: dict[str, Any]) -> dict[str, Tensor]:
    """The case's parameters or gradients under our names, those of all sites one above the other."""

    def stacked(name: str) -> Tensor:
        return torch.stack([tensors[f"{prefix}/{site}/{name}"] for site in range(meta["num_sites"])])

    found = {"A": stacked("static_alpha"), "B": stacked("static_beta")}
    if meta["dynamic"]:
        maps = [stacked("dynamic_alpha_fn").mT, stacked("dynamic_beta_fn").unsqueeze(1)]
        found |= {"W": torch.cat(maps, dim=1), "gain": stacked("norm.gamma")}
        found |= {"s_alpha": stacked("dynamic_alpha_scale"), "s_beta": stacked("dynamic_beta_scale")}
    return found


def check(meta: dict[str, Any], tensors: dict[str, Tensor]) -> list[tuple[str, str, float]]:
    """Errors of one case: (kind of quantity, name, relative error)."""
    sites, stream = meta["num_sites"], stream_of(meta)
    with torch.no_grad():
        for name, value in ours(tensors, "param", meta).items():
            if name == "gain":  # theirs is what is added to 1
                for norm, gain in zip(stream.lane_norms, value + 1, strict=False):
                    norm.get_parameter("gain").copy_(gain)
            else:
                stream.get_parameter(name)[:sites] = value
    embedding = tensors["embedding"].clone().requires_grad_()
    H = stream.spread(embedding)
    errors: list[tuple[str, str, float]] = []
    for site in range(sites):
        state = stream.mix(site, H)
        errors.append(("branch input", str(site), error(state.given, tensors[f"branch_input/{site}"])))
        H = stream.deposit(state, torch.tanh(state.given @ tensors[f"branch/{site}"]))
    output = stream.lanes * stream.read_out(H)  # theirs is the sum, ours the mean
    errors.append(("output", "output", error(output, tensors["output"])))
    output.square().mean().backward()
    errors.append(("gradient", "embedding", error(embedding.grad, tensors["grad/embedding"])))
    gains = [norm.get_parameter("gain").grad for norm in stream.lane_norms] if meta["dynamic"] else []
    for name, value in ours(tensors, "grad", meta).items():
        for site in range(sites):
            gradient = gains[site] if name == "gain" else stream.get_parameter(name).grad[site]  # pyright: ignore[reportOptionalSubscript]
            errors.append(("gradient", f"{site}/{name}", error(gradient, value[site])))
    return errors


def error(a: Tensor | None, b: Tensor) -> float:
    """||a - b|| / ||b||, in float64."""
    assert a is not None
    return ((a.double() - b.double()).norm() / b.double().norm()).item()
