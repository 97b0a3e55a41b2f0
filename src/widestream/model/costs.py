"""What a model costs, without making it: parameters by part, stream size, FLOPs per token, activation bytes.

FLOPs count two per multiply-add of matrix products, attention over the full T x T square (as the RMT paper and
torch's counter do), no norms, no softmax, no look-ups, nothing computed twice. They agree with
`torch.utils.flop_counter` on the real model.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch

from widestream.blocks.roles import named_roles
from widestream.model.build import meta_model
from widestream.model.decoder import Decoder
from widestream.model.depth import Fused, plan_depth
from widestream.model.kept import kept_bytes
from widestream.recipe.model import ModelConfig
from widestream.streams import stream_class

EMBEDDINGS = ("embedding", "positions", "unembedding")
OF_BLOCKS = ("attention projections", "attention over keys", "mlp matrices")
"""Parts of the FLOPs (`count_flops`) that blocks compute."""


@dataclass(frozen=True)
class Summary:
    """Costs of one model configuration."""

    parts: dict[str, int]
    """Parameters by part."""
    active_parameters: int
    """Parameters that one token's path goes through: of experts, those picked."""
    flops: dict[str, int]
    """Forward FLOPs per token by part, at full context."""
    stream_shape: tuple[int, ...]
    """Shape of one token's stream, as the literature writes it."""
    stream_bytes: dict[str, int]
    """Per token, float32: `moved` by the exchanges in a forward pass, `saved` by them for the backward pass; or
    `saved, fused` where they are one operator each, or `saved as writes` where those can be undone, beside the one live
    state."""
    activation_bytes: dict[str, int]
    """Per token, by precision: all that autograd keeps between embedding and head for the backward pass, where the
    stream's states are saved; `float32, fused`, ... and `float32, writes`, ... likewise."""
    about: tuple[str, ...] = ()
    """Those activation bytes that are about right only: of a deep model whose kind shallow ones do not tell exactly."""

    @property
    def total_parameters(self) -> int:
        """All parameters."""
        return sum(self.parts.values())

    @property
    def non_embedding_parameters(self) -> int:
        """All but embedding, learned positions and unembedding."""
        return self.total_parameters - sum(self.parts.get(part, 0) for part in EMBEDDINGS)

    @property
    def stream_size(self) -> int:
        """Cells of one token's stream."""
        return int(torch.Size(self.stream_shape).numel())

    @property
    def forward_flops(self) -> int:
        """Forward FLOPs per token, logits included."""
        return sum(self.flops.values())

    @property
    def train_flops(self) -> int:
        """Training FLOPs per token: a backward pass costs two forward passes."""
        return 3 * self.forward_flops

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        norm = self.parts.get("norm", 0)
        forward = self.forward_flops
        return {
            "parameters": {
                "total": self.total_parameters,
                "active": self.active_parameters,
                "non_embedding": self.non_embedding_parameters,
                "norm": norm,
                "total_without_norm": self.total_parameters - norm,
                "non_embedding_without_norm": self.non_embedding_parameters - norm,
                "by_part": self.parts,
            },
            "flops_per_token": {
                "forward": forward,
                "forward_without_logits": forward - self.flops["logits"],
                "train": 3 * forward,
                "train_without_logits": 3 * (forward - self.flops["logits"]),
                "decode": forward,
                "decode_without_logits": forward - self.flops["logits"],
                "by_part": self.flops,
            },
            "stream_size": self.stream_size,
            "stream_shape": list(self.stream_shape),
            "stream_bytes_per_token": self.stream_bytes,
            "activation_bytes_per_token": self.activation_bytes,
        } | ({"about": list(self.about)} if self.about else {})


def summarize(config: ModelConfig) -> Summary:
    """Count without allocating.

    Decoding one token behind a full context costs what one token of a forward pass does: the same products, and
    attention over `context` keys.
    """
    model = meta_model(config)
    cost = model.stream.cost()
    stream_bytes = {"moved": cost.bytes_moved, "saved": cost.bytes_saved}
    precisions = ("float32", "bf16")
    kept = {precision: kept_bytes(config, precision) for precision in precisions}
    if cost.bytes_saved_fused is not None:
        stream_bytes["saved, fused"] = cost.bytes_saved_fused
        kept |= {f"{precision}, fused": kept_bytes(config, precision, Fused("any")) for precision in precisions}
    if cost.bytes_saved_writes is not None:
        stream_bytes["saved as writes"] = cost.bytes_saved_writes
        rebuilt = plan_depth(config, torch.device("cpu"), "writes", kernels="reference")
        kept |= {f"{precision}, writes": kept_bytes(config, precision, rebuilt) for precision in precisions}
    return Summary(
        parts=count_parameters(model),
        active_parameters=count_active(model),
        flops=count_flops(model),
        stream_shape=stream_class(config.stream.kind).spec(config).state_shape,
        stream_bytes=stream_bytes,
        activation_bytes={name: found.bytes for name, found in kept.items()},
        about=tuple(name for name, found in kept.items() if not found.exact),
    )


def count_parameters(model: Decoder) -> dict[str, int]:
    """Parameters by part of a model, which may be on the meta device."""
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    parts: Counter[str] = Counter()
    for name, role in model.roles().items():
        parts[role.part] += sizes[name]
    return dict(parts)


def count_active(model: Decoder) -> int:
    """Parameters that one token's path goes through."""
    roles = model.roles()
    return sum(round(roles[name].used * parameter.numel()) for name, parameter in model.named_parameters())


def count_flops(model: Decoder) -> dict[str, int]:
    """Forward FLOPs per token by part, at full context, of a model, which may be on the meta device."""
    config = model.config
    matrices: Counter[str] = Counter()
    over_keys = 0
    for block, module in zip(model.layout, model.blocks, strict=True):
        part = "mlp matrices" if block.kind == "mlp" else "attention projections"
        roles = named_roles(module)
        used = {name: round(roles[name].used * parameter.numel()) for name, parameter in module.named_parameters()}
        matrices[part] += 2 * sum(number for name, number in used.items() if roles[name].product)
        if block.kind == "attention":  # windows are masked, not skipped
            over_keys += 4 * config.context * config.num_heads * config.head_dim
    before = {"token before": 2 * model.embedding.before.numel()} if config.token_before == "dense" else {}
    return before | {
        "attention projections": matrices["attention projections"],
        "attention over keys": over_keys,
        "mlp matrices": matrices["mlp matrices"],
        "stream": model.stream.cost().flops,
        "logits": 2 * model.head_weight().numel(),
    }
