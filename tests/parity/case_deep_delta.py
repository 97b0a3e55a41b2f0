"""Cases of kind deep_delta: the published modules at every write, compressor and read-out, between toy branches."""

from typing import Any

import torch
from torch import Tensor

from widestream.blocks.context import Context
from widestream.blocks.roles import Roles, initialize
from widestream.recipe.model import ModelConfig
from widestream.streams.vector.deep_delta import DeepDeltaConfig, DeepDeltaStream

WRITES = {"w_beta": "beta.weight", "b_beta": "beta.bias", "w_v": "v_proj.weight", "b_v": "v_proj.bias"}


def make_stream(meta: dict[str, Any], tensors: dict[str, Tensor]) -> DeepDeltaStream:
    """The stream of the case, its norms without effect of their own (gains of one)."""
    channels = meta["value_channels"]
    own = DeepDeltaConfig(
        compressor="none" if channels == 1 else "channel",
        value_channels=channels,
        taps=None if channels == 1 else tensors["param/compress0/weight"].shape[1],
        value_bound=meta["v_sigmoid_scale"] if meta["v_sigmoid"] else None,
        key_eps=meta["k_eps"],
    )
    config = ModelConfig(
        vocab_size=1, num_layers=meta["num_sites"] // 2, num_heads=1, head_dim=meta["dim"], mlp_dim=1,
        stream=own, norm="rmsnorm", norm_eps=1e-6,
    )  # fmt: skip
    stream = DeepDeltaStream(config, Roles(config))
    initialize(stream, seed=0)
    stream.load_state_dict(ours("param", stream, tensors), strict=False)
    return stream


def ours(prefix: str, stream: DeepDeltaStream, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Published tensors under `prefix` by our parameters' names; all but the norms' gains."""
    found = {}
    for name, _ in stream.named_parameters():
        part, *rest = name.split(".")
        if part == "writes":
            found[name] = tensors[f"{prefix}/{rest[0]}/{WRITES[rest[1]]}"]
        elif part == "compressors":
            index, what = rest
            found[name] = (
                tensors[f"{prefix}/compress{index}/weight"].T
                if what == "taps"
                else tensors[f"{prefix}/compress{index}/read"]
            )
    return found


def relative_error(a: Tensor | None, b: Tensor) -> float:
    """||a - b|| / ||b||."""
    assert a is not None
    return ((a - b).norm() / b.norm()).item()


def check(meta: dict[str, Any], tensors: dict[str, Tensor]) -> list[tuple[str, str, float]]:
    """Errors of one case: (kind of quantity, name, relative error)."""
    stream = make_stream(meta, tensors)
    embedding = tensors["embedding"].clone().requires_grad_()
    context = Context(torch.arange(embedding.shape[1]), segments=None, masks={})
    errors = []
    state, inputs = stream.exchange(0, stream.empty(context), (embedding, None))
    for i in range(meta["num_sites"]):
        errors.append(("branch input", f"{i}", relative_error(inputs["x"], tensors[f"branch_input/{i}"])))
        written = torch.tanh(inputs["x"] @ tensors[f"branch/{i}"])
        state, inputs = stream.exchange(i + 1, state, written)
    published = tensors["state"]  # [B, T, D] or [B, T, D, V]
    reached = state.X.squeeze(-2) if published.dim() == 3 else state.X.transpose(-1, -2)
    errors.append(("output", "state", relative_error(reached, published)))
    errors.append(("output", "output", relative_error(state.x_in, tensors["output"])))  # read out in front of the norm
    state.x_in.square().mean().backward()
    errors.append(("gradient", "embedding", relative_error(embedding.grad, tensors["grad/embedding"])))
    gradients = {name: parameter.grad for name, parameter in stream.named_parameters()}
    golden = ours("grad", stream, tensors)
    return errors + [("gradient", name, relative_error(gradients[name], golden[name])) for name in golden]
