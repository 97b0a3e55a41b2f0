"""Configuration of optimisation and of the training loop."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from widestream.errors import UserError
from widestream.recipe.home import expand_home


@dataclass(frozen=True, kw_only=True, slots=True)
class MuonConfig:
    """Settings of torch.optim.Muon (Jordan et al., kellerjordan.github.io/posts/muon), which hidden matrices take.

    The momentum of each matrix is made nearly orthogonal, then scaled by its shape [A, B], outputs and inputs.
    """

    lr_factor: float = 1.0
    """Muon's peak rate relative to `optimizer.lr`, so that a search of that rate moves both."""
    adjust_lr: Literal["original", "match_rms_adamw"] = "match_rms_adamw"
    """Scale of a step. original: sqrt(max(1, A / B)), whose steps keep their effect as a model widens; rates are ten to
    a hundred times AdamW's. match_rms_adamw: 0.2 sqrt(max(A, B)), as large as AdamW's usual steps, so that one rate and
    one decay serve both (Moonlight, arXiv 2502.16982); not for muP."""
    momentum: float = 0.95
    """Decay of the mean gradient."""
    momentum_start: float | None = None
    """Momentum of the first step, from which it grows evenly over `momentum_warmup` steps; default: no warm-up."""
    momentum_warmup: int | None = None
    """Steps until `momentum` is reached (nanochat: from 0.85 to 0.97 over 400)."""
    nesterov: bool = True
    """Look ahead: orthogonalise the mean of gradient and momentum in place of momentum."""
    ns_steps: int = 5
    """Newton-Schulz iterations, in bfloat16 on every device."""
    weight_decay: float | None = None
    """In place of `optimizer.weight_decay`. Decay is by the rate before its scale by shape."""
    keys: bool = False
    """Whether the stream's own matrices (RMT's keys, ...) take Muon too, and not AdamW."""
    split_heads: bool = False
    """Whether W_Q, W_K, W_V and W_O are made orthogonal head by head. q, k and v are always apart."""

    def __post_init__(self):
        section = "optimizer.muon"
        _require(self, section, "at least 0", lambda value: value >= 0, "lr_factor", "weight_decay")
        _require(self, section, "at least 0 and below 1", lambda value: 0 <= value < 1, "momentum", "momentum_start")
        _require(self, section, "at least 1", lambda value: value >= 1, "momentum_warmup")
        _require(self, section, "from 1 to 99", lambda value: 1 <= value <= 99, "ns_steps")
        if (self.momentum_start is None) != (self.momentum_warmup is None):
            raise UserError(
                "optimizer.muon.momentum_start and optimizer.muon.momentum_warmup go together; give both or neither."
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimizerConfig:
    """AdamW, or Muon with AdamW. The published RMT settings are the defaults (paper, App. C.1)."""

    kind: Literal["adamw", "muon"] = "adamw"
    """adamw: for all parameters. muon: Muon for hidden matrices, AdamW for the rest, by parameter role."""
    lr: float = 1e-2
    """Peak learning rate; a parameter's own rate is this times its muP factor."""
    beta1: float = 0.9
    """Decay of the first moment."""
    beta2: float = 0.95
    """Decay of the second moment."""
    eps: float = 1e-8
    """Added to the root of the second moment."""
    weight_decay: float = 1e-4
    """Decay strength; see `decay`."""
    decay: Literal["coupled", "independent"] = "independent"
    """coupled: w -= lr_t * weight_decay * w (PyTorch's AdamW). independent: w -= s_t * weight_decay * w with s_t the
    schedule in [0, 1], so the peak rate does not scale it (the published RMT code)."""
    decay_keys: bool = True
    """Whether the stream's keys (and weights that start at zero) are decayed. Embedding, head and norms never are."""
    grad_clip: float | None = None
    """Largest global gradient norm; `null` for no clipping."""
    lr_factors: dict[str, float] = field(default_factory=dict)
    """Rates of some parameters relative to what they would be, by part (`keys`, `stream`, `attention`, ...: headings of
    `widestream summary`) or by a pattern of names (`blocks.*`); of several that fit, the last one counts. 0 freezes: no
    step, no decay, no gradient."""
    muon: MuonConfig | None = None
    """Settings of kind: muon."""

    def __post_init__(self):
        if self.kind == "muon" and self.muon is None:
            object.__setattr__(self, "muon", MuonConfig())
        if self.kind != "muon" and self.muon is not None:
            raise UserError(
                f"optimizer.muon is set, but optimizer.kind is {self.kind}; set optimizer.kind=muon, or "
                "optimizer.muon=null."
            )
        _require(self, "optimizer", "at least 0", lambda value: value >= 0, "lr", "weight_decay")
        _require(self, "optimizer", "at least 0 and below 1", lambda value: 0 <= value < 1, "beta1", "beta2")
        _require(self, "optimizer", "above 0", lambda value: value > 0, "eps", "grad_clip")
        for key, factor in self.lr_factors.items():
            if factor < 0:
                raise UserError(f"optimizer.lr_factors.{key} is {factor}; it must be at least 0.")


@dataclass(frozen=True, kw_only=True, slots=True)
class ScheduleConfig:
    """Learning rate over training, as a factor in [0, 1] of the peak."""

    kind: Literal["cosine", "wsd", "constant"] = "cosine"
    """cosine: warm-up, then a half cosine to `floor`. wsd: warm-up, stable, linear decay to `floor`.
    constant: warm-up only."""
    warmup: float = 0.05
    """Linear warm-up: a fraction of all steps if below 1, else a number of steps."""
    floor: float = 0.1
    """Final factor, as a fraction of the peak."""
    decay: float = 0.2
    """wsd only: length of the final decay, a fraction of all steps if below 1, else a number of steps."""

    def __post_init__(self):
        _require(self, "schedule", "at least 0", lambda value: value >= 0, "warmup", "decay")
        _require(self, "schedule", "between 0 and 1", lambda value: 0 <= value <= 1, "floor")


@dataclass(frozen=True, kw_only=True, slots=True)
class ParallelConfig:
    """How the processes that torchrun starts share the work. Each has its part of every batch; replicate x shard x
    context x tensor is their number. With neither of the first two given, weights are replicated where they, gradients
    and moments take at most half of a device's memory, and sharded over all processes else.
    """

    replicate: int | None = None
    """Groups of processes that hold the same weights. Default: what `shard` leaves."""
    shard: int | None = None
    """Processes that share out one copy of weights, gradients and moments. Default: what `replicate` leaves."""
    context: int = 1
    """Processes that share the tokens of a window, so that long windows fit: each computes with its part of them, in
    attention with all of them and its part of the heads. They share out weights, gradients and moments too, as those of
    `shard` do."""
    tensor: int = 1
    """Processes that share the heads and neurons of every block (Megatron-LM), so that wide blocks fit and compute
    quicker: for streams whose attention receives vectors; those of matrix streams have `context`. Outputs of blocks are
    added up, and so are gradients of what blocks receive: for processes with quick links, of one machine."""
    gather: Literal["auto", "float32", "bf16"] = "auto"
    """How a block's weights are sent where they are sharded; the shares stay float32, and so do gradients. bf16 is for
    `train.precision: bf16`, whose matrices it changes in nothing: half of what is sent and of the memory of whole
    weights, and blocks' gains and biases rounded too. auto: as the precision is."""
    timeout_s: int = 600
    """Seconds that a process waits for the others. Half as many again after its last step one that hangs says where it
    is, and ends."""

    def __post_init__(self):
        counts = ("replicate", "shard", "context", "tensor", "timeout_s")
        _require(self, "train.parallel", "at least 1", lambda value: value >= 1, *counts)
        _require(self, "train.parallel", "at most 86400", lambda value: value <= 86400, "timeout_s")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """The training loop."""

    steps: int | None = None
    """Optimizer steps. Give this or `tokens`."""
    tokens: int | None = None
    """Training tokens; rounded up to whole steps."""
    batch_size: int = 64
    """Windows per optimizer step, over all processes and micro-batches."""
    micro_batch_size: int | None = None
    """Windows per forward pass and process; the rest is gradient accumulation. Default: no accumulation."""
    seed: int = 0
    """Seed of the initial weights."""
    init_from: str | None = None
    """Start from the weights of another run: its folder (the newest checkpoint) or that of one of its checkpoints.
    Moments and schedule start anew. Relative to the working directory; ~ is the home folder."""
    z_loss: float = 1e-4
    """Weight of (log sum exp logits)^2; kept apart from the reported loss."""
    device: str = "auto"
    """auto (cuda if there is one, else cpu), cpu, cuda, cuda:1, ..."""
    precision: Literal["auto", "float32", "bf16"] = "auto"
    """bf16: autocast to bfloat16, weights stay float32. auto: bf16 where the machine multiplies it faster."""
    threads: int | None = None
    """CPU threads; default: torch's choice."""
    compile: bool = False
    """Compile the blocks with torch.compile, and the stream too where its states are saved."""
    activation_checkpointing: bool = False
    """Keep only what crosses layer boundaries for the backward pass (block boundaries where states are rebuilt from
    writes); recompute the rest."""
    stream_memory: Literal["auto", "states", "writes"] = "auto"
    """What is kept of the stream for the backward pass. states: its state at every site. writes: what blocks wrote,
    from which states are rebuilt, so that a wider state saves no more. auto: writes where a fused
    kernel makes that the faster way too (RMT and its nearest relatives), or another setting needs it; else states."""
    anchors: int = 0
    """writes: exact copies of the state, evenly spaced over depth. RMT and others whose writes can be undone: they
    stand in for rebuilt states, in very deep models or for a state in bf16. Streams whose states are replayed from the
    copy before (hyper-connections, histories, ...): 0 takes mHC's rule, about the square root of the blocks."""
    kernels: Literal["auto", "reference", "fused"] = "auto"
    """What computes an exchange. reference: torch operations. fused: one pass over the state, with states saved as one
    operator of autograd and torch.compile. auto: fused where this machine and the stream have it; on a GPU with states,
    reference."""
    state_precision: Literal["float32", "bf16"] = "float32"
    """writes: how the live state and its gradient are kept. bf16 halves what exchanges move, and rounds every write."""
    attention: Literal["auto", "sdpa", "flex", "fused"] = "auto"
    """What computes attention. sdpa: torch's fused attention; documents, windows and ALiBi become a mask in memory.
    flex: where there is a mask other than causal, FlexAttention, which leaves out blocks of it; CUDA only. fused:
    torch's forward pass and a compiled backward pass, the faster one on a CPU; CPU only. auto: fused on a CPU where it
    can be had; flex on a CUDA device with `compile`, unless attention is upcast; else sdpa."""
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    """How several processes share the work."""
    deterministic: bool = True
    """Use deterministic algorithms, so that a resumed run is bit-identical to an uninterrupted one."""
    log_every: int = 1
    """Steps between training lines in metrics.jsonl."""
    eval_every: int = 100
    """Steps between held-out evaluations (one is always made at the end)."""
    eval_windows: int | None = None
    """Windows per evaluation during training; default: the whole held-out split."""
    selection: float = 0.0
    """Share of the held-out windows, evenly spread, that settings are chosen on: their loss at the end is kept apart
    (done.json), and all other evaluations are of the rest."""
    final_eval: Literal["whole", "windows"] = "whole"
    """whole: the last evaluation reads all held-out windows. windows: as many as those before it (searches)."""
    watch_every: int | None = None
    """Steps between looks at the stream's health: sizes over depth, gains, how alike lanes are (docs/how-to/lens.md);
    rows of kind `stream` in metrics.jsonl. One window forward and back. None: never."""
    save_every: int = 100
    """Steps between checkpoints (one is always made at the end)."""
    keep: int = 2
    """Newest checkpoints kept; older ones are removed after a newer one is complete."""
    keep_best: int = 0
    """Checkpoints kept beside these: those with the lowest held-out loss, where it was measured at their step."""
    mirror: str | None = None
    """URL of a copy of the run, such as s3://bucket/run: complete checkpoints are copied there, and a run whose folder
    is gone is fetched from there (needs the `remote` extra)."""
    nonfinite: Literal["stop", "skip"] = "stop"
    """When the loss or gradient is not finite: stop and save the batch, or skip the step and count it."""
    rollback: float | None = None
    """When the loss is above so many times the median of the last 64 steps, go back to the checkpoint before, and on
    with other batches (train/rollback.py); None: never. 1.5 takes hold of leaps alone in most runs."""
    tensorboard: bool = False
    """Also write TensorBoard events (needs the `track` extra)."""
    wandb: bool = False
    """Also write to W&B (needs the `track` extra); WANDB_MODE=offline keeps it on the disk."""
    trackio: bool = False
    """Also write to trackio, on this machine (needs the `track` extra)."""

    def __post_init__(self):
        if self.init_from is not None:
            object.__setattr__(self, "init_from", expand_home(self.init_from))
        counts = ("steps", "tokens", "batch_size", "micro_batch_size", "threads")
        counts += ("log_every", "eval_every", "watch_every", "eval_windows", "save_every", "keep")
        _require(self, "train", "at least 1", lambda value: value >= 1, *counts)
        _require(self, "train", "at most 1024", lambda value: value <= 1024, "threads")
        _require(self, "train", "at least 0", lambda value: value >= 0, "z_loss", "anchors", "keep_best")
        _require(self, "train", "at least 0 and below 1", lambda value: 0 <= value < 1, "selection")
        _require(self, "train", "above 1", lambda value: value > 1, "rollback")
        _require(self, "train", "at least 0 and below 2^31", lambda value: 0 <= value < 2**31, "seed")


def _require(config: Any, section: str, wanted: str, holds: Callable[[Any], bool], *names: str) -> None:
    """Check fields that were given a value.

    Raises:
        UserError: names the first field for which `holds` is false.
    """
    for name in names:
        value = getattr(config, name)
        if value is not None and not holds(value):
            raise UserError(f"{section}.{name} is {value}; it must be {wanted}.")
