"""MUDDFormer cases: the authors' dense module between toy layers, whose branches read the four ways unnormalised."""

from typing import Any

import torch
from torch import Tensor

from check_official import relative_error
from widestream.blocks.roles import Roles
from widestream.recipe.model import ModelConfig
from widestream.streams.depth.mudd import MuddConfig, MuddStream

PLACES = {"w1": "w1.weight", "w2": "w2.weight", "b": "dense_bs"}
"""The authors' names of our parameters of one layer."""


def check(meta: dict[str, Any], tensors: dict[str, Tensor]) -> list[tuple[str, str, float]]:
    """Errors of one case: (kind of quantity, name, relative error)."""
    stream = make_stream(meta, tensors)
    embedding = tensors["embedding"].clone().requires_grad_()
    state = stream.write_embedding(None, embedding, None)
    errors = []
    for layer in range(meta["num_blocks"]):
        for way, x in zip(meta["ways"], state.ways, strict=True):
            name = f"block_input/{layer}/{way}"
            errors.append(("branch input", name, relative_error(x.detach(), tensors[name])))
        q, k, v = (x @ tensors[f"branch/{layer}/{way}"] for way, x in zip("qkv", state.ways[:3], strict=True))
        state = stream.write(2 * layer + 1, state, torch.tanh(q + k + v))
        state = stream.write(2 * layer + 2, state, torch.tanh(state.ways[-1] @ tensors[f"branch/{layer}/f"]))
    (output,) = state.ways
    errors.append(("output", "output", relative_error(output.detach(), tensors["output"])))
    loss = output.square().mean()
    loss.backward()
    errors.append(("loss", "loss", relative_error(loss.item(), meta["loss"])))
    gradients = {"grad/embedding": embedding.grad}
    for name, golden in golden_names(meta).items():
        gradients[f"grad/{golden}"] = stream.get_parameter(name).grad
    return errors + [("gradient", name, relative_error(own, tensors[name])) for name, own in gradients.items()]  # pyright: ignore[reportArgumentType]


def make_stream(meta: dict[str, Any], tensors: dict[str, Tensor]) -> MuddStream:
    """The stream with the case's parameters; its norms in front of reads stay unused."""
    config = ModelConfig(
        vocab_size=1, num_layers=meta["num_blocks"], num_heads=1, head_dim=meta["dim"], mlp_dim=1,
        norm="rmsnorm", norm_eps=meta["norm_eps"], stream=MuddConfig(),
    )  # fmt: skip
    stream = MuddStream(config, Roles(config))
    with torch.no_grad():
        for name, golden in golden_names(meta).items():
            stream.get_parameter(name).copy_(tensors[f"param/{golden}"])
    return stream


def golden_names(meta: dict[str, Any]) -> dict[str, str]:
    """The authors' name of each of our parameters."""
    layers = range(meta["num_blocks"])
    return {f"{own}_{layer}": f"{layer}/{theirs}" for layer in layers for own, theirs in PLACES.items()}
