"""Token after token through a model with a KV cache: the prompt at once, then one step a token, eager or compiled.

Letters: B sequences, T tokens, V vocabulary.
"""

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from widestream.blocks.roles import named_roles
from widestream.kernels.compiled import require_compiler
from widestream.machine import DTYPES, autocast
from widestream.model.decoder import Decoder

MOST_GRAPHS = 1024
"""Compiled steps in one process: another one for every model, batch size and length. Torch's own limit is 8."""

_LIMITS: dict[str, Any] = {"recompile_limit": MOST_GRAPHS, "accumulated_recompile_limit": MOST_GRAPHS}


class Decoding:
    """Sequences that one model continues side by side.

    Args:
        model: in evaluation mode, on any device; with `cast_weights` before for bfloat16.
        batch_size: sequences B.
        length: most tokens of a sequence, the prompt among them.
        precision: `float32`, or `bf16` to compute as in training under autocast.
        compiled: run the steps behind the prompt as one compiled function of fixed shapes, which takes the first step
            long; on a GPU it is captured as a CUDA graph. The tokens are those of an uncompiled step, but for rounding.
        options: for `torch.compile`.

    Raises:
        UserError: there is nothing to compile with.
    """

    def __init__(
        self,
        model: Decoder,
        batch_size: int,
        length: int,
        *,
        precision: str = "float32",
        compiled: bool = False,
        **options: Any,
    ):
        self.model = model
        self.device = model.head_weight().device
        self.precision = precision
        self.cache = model.new_cache(batch_size, length, torch.bfloat16 if precision == "bf16" else None)
        self._compiled = _compile(model, self.device, **options) if compiled else None
        self._steps = 0
        if compiled:
            for tensor in (*self.cache.keys, *self.cache.values):
                torch._dynamo.mark_static_address(tensor)  # a CUDA graph then updates it in place

    @torch.no_grad()
    def __call__(self, tokens: Tensor) -> Tensor:
        """Logits [B, V] behind the last of `tokens` [B, T], which are appended to what came before.

        Raises:
            UserError: more tokens than there is room for.
        """
        with autocast(self.device, self.precision):
            if self._compiled is None or self.cache.length == 0 or tokens.shape[1] > 1:
                return self.model.logits(self.model(tokens, cache=self.cache)[:, -1])
            self.cache.check_room(1)
            position = torch.full((1,), self.cache.length, device=self.device)
            with torch._dynamo.config.patch(**_LIMITS) if self._steps == 0 else contextlib.nullcontext():
                logits = self._compiled(tokens, position, self.cache)
            self._steps += 1
            self.cache.advance(1)
            return logits


def _compile(model: Decoder, device: torch.device, **options: Any) -> Callable[..., Tensor]:
    if "backend" not in options:
        require_compiler("--compile", device)
    if device.type == "cuda":
        options = {"mode": "reduce-overhead", **options}
    return torch.compile(model.step, dynamic=False, fullgraph=True, **options)


def cast_weights(model: Decoder, precision: str) -> None:
    """Keep the large matrices in the precision that they are multiplied in, so that no step casts them anew.

    These are the blocks' matrices and the head's; they are read once a token and are what decoding spends its time on.
    Keys, gates and norms of the stream stay as they are.

    Args:
        model: changed in place; not to be trained afterwards.
        precision: `bf16` casts; `float32` leaves the model alone.
    """
    if precision == "float32":
        return
    roles = named_roles(model.blocks)
    # Those between infinite axes: a router, to a finite one, computes in float32.
    matrices = [parameter for name, parameter in model.blocks.named_parameters() if roles[name].muon]
    for parameter in (*matrices, model.head_weight()):
        parameter.data = parameter.data.to(DTYPES[precision])
