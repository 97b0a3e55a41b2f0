"""Golden cases of kind `mhc`: the authors' lanes, driven by toy branches that get them without the norm."""

from typing import Any

import torch
from torch import Tensor

from widestream.model.build import build_model
from widestream.recipe import build
from widestream.recipe.model import ModelConfig
from widestream.streams.lanes import mhc


def stream_of(meta: dict[str, Any]) -> mhc.MHCStream:
    """Our stream with twice as many sites as the case, whose number may be odd; the rest stays unused."""
    assert meta["sinkhorn_repeat"] == mhc.ROUNDS
    assert meta["post_mult_value"] == 2
    assert meta["pre_eps"] == meta["sinkhorn_eps"]
    sizes = {"vocab_size": 2, "num_layers": meta["num_sites"], "num_heads": 1, "head_dim": meta["dim"], "mlp_dim": 1}
    stream = {"kind": "mhc", "lanes": meta["num_streams"], "eps": meta["pre_eps"], "readout": "learned"}
    built = build_model(build(ModelConfig, sizes | {"norm_eps": meta["norm_eps"], "stream": stream}, "model")).stream
    assert isinstance(built, mhc.MHCStream)
    return built


def ours(tensors: dict[str, Tensor], prefix: str, meta: dict[str, Any]) -> dict[str, Tensor]:
    """The case's parameters or gradients under our names, those of all sites one above the other.

    Their H_res is the transpose of ours.
    """
    n, sites = meta["num_streams"], range(meta["num_sites"])

    def turned(rows: Tensor) -> Tensor:
        square = rows[2 * n :].unflatten(0, (n, n)).transpose(0, 1).flatten(0, 1)
        return torch.cat([rows[: 2 * n], square])

    bases = torch.stack([turned(tensors[f"{prefix}/{site}/base"]) for site in sites])
    return {
        "phi": torch.stack([turned(tensors[f"{prefix}/{site}/fn"]) for site in sites]),
        "alpha": torch.stack([tensors[f"{prefix}/{site}/scale"] for site in sites]),
        "b_pre": bases[:, :n],
        "b_post": bases[:, n : 2 * n],
        "b_res": bases[:, 2 * n :].unflatten(1, (n, n)),
        "head_phi": tensors[f"{prefix}/head/fn"],
        "head_alpha": tensors[f"{prefix}/head/scale"],
        "head_b": tensors[f"{prefix}/head/base"],
    }


def check(meta: dict[str, Any], tensors: dict[str, Tensor]) -> list[tuple[str, str, float]]:
    """Errors of one case: (kind of quantity, name, relative error)."""
    sites, stream = meta["num_sites"], stream_of(meta)
    with torch.no_grad():
        for name, value in ours(tensors, "param", meta).items():
            stream.get_parameter(name)[: len(value)] = value
    embedding = tensors["embedding"].clone().requires_grad_()
    H = stream.spread(embedding)
    errors: list[tuple[str, str, float]] = []
    for site in range(sites):
        state = stream.mix(site, H)
        errors.append(("branch input", str(site), error(state.given, tensors[f"branch_input/{site}"])))
        H = stream.deposit(state, torch.tanh(state.given @ tensors[f"branch/{site}"]))
    output = stream.read_out(H)
    errors.append(("output", "state", error(H, tensors["state"])))
    errors.append(("output", "output", error(output, tensors["output"])))
    output.square().mean().backward()
    errors.append(("gradient", "embedding", error(embedding.grad, tensors["grad/embedding"])))
    for name, value in ours(tensors, "grad", meta).items():
        gradient = stream.get_parameter(name).grad
        assert gradient is not None
        errors.append(("gradient", name, error(gradient[: len(value)], value)))
    return errors


def error(a: Tensor | None, b: Tensor) -> float:
    """||a - b|| / ||b||, in float64."""
    assert a is not None
    return ((a.double() - b.double()).norm() / b.double().norm()).item()
