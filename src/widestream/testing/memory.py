"""What a stream must hold to as to the backward pass's memory: a part of the checks in `streams.py`."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from widestream.blocks.context import make_context
from widestream.errors import UserError
from widestream.model.decoder import Decoder
from widestream.model.depth import Depth, Eager, Fused, plan_depth
from widestream.recipe.model import ModelConfig
from widestream.testing.models import Fields, copy_of, random_model, tokens_of, without_positions

WIDER: Fields = {"num_heads": 8, "head_dim": 32, "mlp_dim": 64, "context": 64}
"""Beside vectors of this width the few numbers that norms keep of each hardly count."""


def check_saved(stream: Fields, changes: Fields) -> None:
    """Autograd keeps the bytes of states and history that are declared, to 5 %; of exchanges as operators, exactly."""
    model = random_model(stream, changes | WIDER)
    cost = model.stream.cost()
    kept, declared = bytes_kept(stream, changes | WIDER, lambda _: Eager(), length=64), cost.bytes_saved
    assert abs(kept - declared) <= 0.05 * declared, f"{kept:.0f} bytes are kept per token, {declared} declared"
    is_kernel = type(model.stream).spec(model.config).undo == "kernel"
    assert (cost.bytes_saved_fused is not None) == is_kernel, "declares bytes for operators, or should"
    if is_kernel:
        kept = bytes_kept(stream, changes | WIDER, lambda _: Fused("any"), length=64)
        assert kept == cost.bytes_saved_fused, f"operators keep {kept} bytes, {cost.bytes_saved_fused} declared"


def check_reversible(stream: Fields, changes: Fields) -> None:
    """Rebuilt and replayed states give the gradients of saved ones, and keep as many bytes as declared.

    So do saved states where an exchange is one operator.

    A gradient may be off by 1e-5, or by about what rounding does to plain autograd: some are small sums of large terms.
    """
    model = random_model(stream, changes)
    config, here = model.config, torch.device("cpu")
    if type(model.stream).spec(config).undo == "no":
        assert model.stream.cost().bytes_saved_writes is None, "declares bytes for states that are not rebuilt"
        try:
            plan_depth(config, here, "writes")
        except UserError:
            return
        raise AssertionError("states that are not rebuilt are not refused")
    exact, plain = gradients(model, Eager(), torch.float64), gradients(model, Eager())
    plans = [plan_depth(config, here, "writes", kernels=kernels) for kernels in ("reference", "auto")]
    if type(model.stream).spec(config).undo == "kernel":
        plans.append(Fused("any"))
    for plan in plans:
        in_float64, in_float32 = gradients(model, plan, torch.float64), gradients(model, plan)
        for name, wanted in exact.items():
            pairs = (in_float32[name], plain[name]), (plain[name], wanted), (in_float64[name], wanted)
            error, rounding, exact_error = (((a - b).norm() / wanted.norm()).item() for a, b in pairs)
            assert error < max(1e-5, 4 * rounding), f"the gradient of {name} is off by {error:.1e} ({plan})"
            assert exact_error < 1e-10, f"in float64 the gradient of {name} is off by {exact_error:.1e} ({plan})"
    kept, declared = saved_by_writes(stream, changes), model.stream.cost().bytes_saved_writes
    assert kept == declared, f"{kept} bytes are kept per token, {declared} declared"


def gradients(model: Decoder, depth: Depth, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Of a small batch's loss, by parameter, going through the depth by `depth` and computing in `dtype`."""
    model = copy_of(model, depth, dtype)
    model.loss(tokens_of(2, 20), tokens_of(2, 20, seed=1)).total.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def saved_by_writes(stream: Fields, changes: Fields) -> float:
    """Bytes per token that exchanges on a tape leave in the graph."""
    return bytes_kept(stream, changes, lambda config: plan_depth(config, torch.device("cpu"), "writes"))


def bytes_kept(stream: Fields, changes: Fields, plan: Callable[[ModelConfig], Depth], length: int = 20) -> float:
    """Bytes per token that exchanges leave in the graph, going by `plan`: what a second window adds."""
    model, sizes = random_model(stream, without_positions(changes)), []
    depth, blocks = plan(model.config), [_unwatched(block) for block in model.blocks]
    for windows in (1, 2):
        kept: dict[int, Tensor] = {}

        def pack(tensor: Tensor, kept: dict[int, Tensor] = kept) -> Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        context = make_context(model.config, torch.arange(length), windows=model.windows)
        embedded = model.embedding(tokens_of(windows, length), context.positions, context)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            depth(model.stream, blocks, embedded, context)
        sizes.append(sum(tensor.untyped_storage().nbytes() for tensor in kept.values()))
    return (sizes[1] - sizes[0]) / length


def _unwatched(block: nn.Module) -> Callable[..., Tensor]:
    """A block of which nothing that it saves is counted: of two hooks the inner one is asked."""

    def compute(*arguments: Any) -> Tensor:
        with torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor):
            return block(*arguments)

    return compute
