"""From a configuration to a run that is ready to take its next step, whether it is its first or its thousandth."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from widestream.blocks.attention_kind import Attention, choose_attention
from widestream.data.batches import Batch, TrainBatches, divide_windows
from widestream.data.store import TokenStore
from widestream.errors import UserError
from widestream.machine import memory_total
from widestream.model.build import count_weights, meta_model
from widestream.model.decoder import Decoder
from widestream.model.depth import Depth, plan_depth
from widestream.recipe import RunConfig, to_dict
from widestream.runs import checkpoint
from widestream.runs.folder import flatten, load_config
from widestream.runs.identity import own_settings, require_own
from widestream.runs.metrics import MetricsWriter, in_use, require_idle
from widestream.runs.mirror import Mirror
from widestream.runs.model import all_finite, is_finite, not_finite
from widestream.runs.rows import Written
from widestream.runs.splits import open_splits
from widestream.runs.trackers import Trackers, require_trackers
from widestream.runs.write import move_aside
from widestream.streams import stream_class
from widestream.train.begin import describe_data, note_start, open_folder, precision_of
from widestream.train.layout import build_shared, choose_layout
from widestream.train.optim import build_optimizer
from widestream.train.origin import describe, find_origin
from widestream.train.parallel import World
from widestream.train.plan import Plan, make_plan
from widestream.train.rollback import Losses, Rollback, batch_of, note_rollback, read_rollbacks, seconds_at
from widestream.train.saving import Saver, newest_checkpoint
from widestream.train.shards import Shares, own, settle


@dataclass(kw_only=True, slots=True)
class Reached:
    """How far a run has come: all that changes besides weights, moments and files."""

    step: int = 0
    """Optimizer steps done."""
    wall_s: float = 0.0
    """Seconds spent training; evaluation and saving are not in it."""
    skipped: int = 0
    """Steps skipped because something was not finite."""
    heldout: dict[str, Any] | None = None
    """The newest evaluation."""
    selection: dict[str, Any] | None = None
    """The evaluation at the end on the windows that settings are chosen on, if any are kept for that."""


@dataclass(kw_only=True, slots=True)
class TrainingRun:
    """Everything the training loop works with."""

    config: RunConfig
    """What was asked for."""
    plan: Plan
    """The same in numbers."""
    world: World
    """The processes that take part."""
    folder: Path
    """The run folder."""
    info: dict[str, Any]
    """Contents of run.json as it was opened."""
    peak_flops_per_s: float
    """Most that the processes could do together."""
    model: Decoder
    """The decoder, in training mode."""
    optimizer: torch.optim.Optimizer
    """Over its parameters."""
    batches: TrainBatches
    """The training data, addressed by step."""
    heldout: TokenStore | None
    """The data for evaluation, if any."""
    reported: Sequence[int]
    """Windows of it that evaluations are of."""
    chosen: Sequence[int]
    """Windows of it that settings are chosen on."""
    metrics: MetricsWriter | None
    """The log, in the main process."""
    saver: Saver
    """Writes checkpoints."""
    reached: Reached
    """How far the run has come."""
    losses: Losses
    """The last ones, by which a leap is known."""
    rollbacks: list[Rollback]
    """When the run has gone back."""
    said: str
    """What is to be said before it starts: other settings than it came so far with, or where its weights are from."""

    @property
    def precision(self) -> str:
        """`bf16` or `float32`."""
        return self.info["precision"]

    @property
    def tokens(self) -> int:
        """Training tokens so far."""
        return self.reached.step * self.plan.tokens_per_step

    @property
    def flops_per_token(self) -> float:
        """Training FLOPs per token at the run's sequence length, logits included."""
        return self.info["train_flops_per_token"]

    @property
    def flops(self) -> float:
        """Training FLOPs so far, logits included."""
        return self.tokens * self.flops_per_token

    def record(self, kind: str, **values: Any) -> None:
        """Write a row to metrics.jsonl."""
        if self.metrics is not None:
            self.metrics.write({"kind": kind, "step": self.reached.step, **values})

    def due(self, every: int) -> bool:
        """Whether something done every so many steps is due; at the end everything is."""
        return self.reached.step % every == 0 or self.reached.step == self.plan.steps

    def batch_at(self, step: int) -> Batch:
        """This process's part of the batch of a step."""
        return self.batches.at(batch_of(step, self.rollbacks), self.world.reader, self.world.readers)

    def go_back(self, loss: float, usual: float) -> Rollback:
        """Enter that the run goes back from here; the caller prepares it anew."""
        self.saver.finish()
        saved = newest_checkpoint(self.folder, self.world)
        rollback = Rollback(self.reached.step, 0 if saved is None else saved.step, loss, usual, self.reached.wall_s)
        self.world.on_main(lambda: note_rollback(self.folder, rollback))
        return rollback

    def save(self) -> None:
        """Begin a checkpoint of where the run stands (`Saver.begin`); all processes have to ask for it."""
        settle(self.model)
        reached, evaluated = self.reached, self.due(self.config.train.eval_every)
        state = {
            "wall_s": reached.wall_s,
            "skipped": reached.skipped,
            "heldout": reached.heldout,
            "heldout_loss": reached.heldout["loss"] if reached.heldout is not None and evaluated else None,
            "selection": reached.selection,
            "losses": self.losses.last,
            "settings": own_settings(self.config),
            "data_fingerprint": self.info["data"]["fingerprint"],
        }
        written = None if self.metrics is None else self.metrics.sync()
        self.saver.begin(reached.step, self.model, self.optimizer, state, written)


def _given(config: RunConfig, data: dict[str, Any]) -> dict[str, Any]:
    """What processes that train together must have in common: all but where the data lie."""
    settings = {key: value for key, value in flatten(to_dict(config)).items() if key != "data.path"}
    return settings | {f"the {key} of the data": data.get(key) for key in ("fingerprint", "heldout_fingerprint")}


def prepare(config: RunConfig, run_dir: Path, world: World, resume: bool = True, extend: bool = False) -> TrainingRun:
    """Check everything, open data and run folder, build the model, and restore the newest checkpoint if there is one.

    Args:
        config: what to train.
        run_dir: the run's folder.
        world: the processes that take part; only the main one writes.
        resume: go on from what the folder holds; if not, the folder is moved aside first.
        extend: go on also where another length or schedule makes other rates of the steps that were done.

    Raises:
        UserError: something does not fit together, data were altered, or the folder belongs to another run or is being
            trained in.
    """
    plan = make_plan(config, world.readers)
    if config.train.watch_every is not None and world.context > 1:
        raise UserError("train.watch_every looks at whole windows; leave it out where processes share them (context).")
    require_trackers(config)  # not installed? Better said now than when the folder has been made
    depth, attention = depth_of(config, world.device), attention_of(config, world.device)
    weights = count_weights(meta_model(config.model))
    room = memory_total(world.device)
    precision = world.on_main(lambda: precision_of(config, run_dir, world.device, resume))
    layout = world.on_main(lambda: choose_layout(config.train.parallel, world.size, weights, room, precision))
    computed = {"exchanges": depth.describe(), "attention": attention, "layout": layout.describe()}
    mirrors: list[Mirror] = []  # one, in the main process
    fetched = world.on_main(lambda: _open_mirror(mirrors, run_dir, config.train.mirror, resume))
    idle = world.on_main(lambda: _idle_folder(run_dir))
    store, heldout = _open_data(config, world)
    batches = TrainBatches(store, plan.sequence_length, config.train.batch_size, config.data.seed)
    selection = config.train.selection
    reported, chosen = divide_windows(heldout, plan.sequence_length, selection) if heldout is not None else ([], [])
    data = describe_data(config, plan, store, heldout)
    world.require_same(_given(config, data))
    origin = world.on_main(lambda: find_origin(config, run_dir, resume))
    model = build_shared(config.model, config.train.seed, world, layout, depth, attention)
    if origin is not None:
        checkpoint.load_weights(Path(origin.folder), model, Shares(model))
        if not (world.all_(all_finite(own(model.parameters()))) and world.all_(is_finite(model, []))):
            raise not_finite(origin.folder)
        settle(model)
    optimizer = build_optimizer(model, config.optimizer)
    if not resume:
        world.on_main(lambda: _move_aside(run_dir, idle))
    begun = computed | describe(origin)
    info = world.on_main(lambda: open_folder(run_dir, config, data, world, precision, begun))
    reached, written, losses = _restore(plan, config, run_dir, info, world, model, optimizer)
    peak, changed = world.on_main(lambda: note_start(run_dir, config, info, reached.step, world, computed, extend))
    writers: list[MetricsWriter] = []  # one, in the main process
    world.on_main(lambda: writers.append(_writer(run_dir, config, reached.step, written)))
    return TrainingRun(
        config=config,
        plan=plan,
        world=world,
        folder=run_dir,
        info=info,
        peak_flops_per_s=peak * world.size,
        model=model,
        optimizer=optimizer,
        batches=batches,
        heldout=heldout,
        reported=reported,
        chosen=chosen,
        metrics=writers[0] if writers else None,
        saver=Saver(run_dir, world, layout, config.train.keep, config.train.keep_best, *mirrors),
        reached=reached,
        losses=losses,
        rollbacks=read_rollbacks(info),
        said="; ".join(filter(None, (fetched, changed, origin and origin.told))),
    )


def _open_mirror(mirrors: list[Mirror], run_dir: Path, url: str | None, resume: bool) -> str:
    """Open the run's mirror, if it has one, and fetch a run from it that is not here; says so."""
    if url is None:
        return ""
    mirrors.append(Mirror(run_dir, url))
    fetched = resume and mirrors[0].restore()
    mirrors[0].require_own(anew=not resume)
    return f"fetched from {url}" if fetched else ""


def _idle_folder(run_dir: Path) -> tuple[int, int] | None:
    """Which folder bears this name now, if any does; nobody trains in it."""
    require_idle(run_dir)
    if not run_dir.exists():
        return None
    status = run_dir.stat()
    return status.st_dev, status.st_ino


def _move_aside(run_dir: Path, idle: tuple[int, int] | None) -> None:
    """Make room for a run that begins anew, unless another process has done so while this one read its data through.

    Of such a one the folder is another one; what it writes may not be held yet.
    """
    if _idle_folder(run_dir) != idle:
        raise in_use(run_dir)
    move_aside(run_dir)


def _writer(run_dir: Path, config: RunConfig, step: int, written: Written | None) -> MetricsWriter:
    """Opens the metrics, which holds the run, and then its trackers."""
    writer = MetricsWriter(run_dir, step, written=written)
    writer.trackers = Trackers(run_dir, config, step)
    return writer


def depth_of(config: RunConfig, device: torch.device, training: bool = True) -> Depth:
    """A run's way through the depth.

    Args:
        config: the run's.
        device: where it computes.
        training: whether there is a backward pass; without one nothing is compiled or computed again.

    Raises:
        UserError: see `plan_depth`.
    """
    train = config.train
    return plan_depth(
        config.model,
        device,
        train.stream_memory,
        train.anchors,
        train.kernels,
        train.state_precision,
        recompute=training and train.activation_checkpointing,
        compiled=training and train.compile,
    )


def attention_of(config: RunConfig, device: torch.device) -> Attention:
    """What computes a run's attention.

    Raises:
        UserError: see `blocks.attention_kind.choose_attention`.
    """
    train, model = config.train, config.model
    windows = any(block.window is not None for block in stream_class(model.stream.kind).blocks(model))
    return choose_attention(
        train.attention,
        device,
        compiled=train.compile,
        masked=model.document_mask or model.positions == "alibi" or windows,
        head_dim=model.head_dim,
        upcast=model.upcast_attention,
    )


def _open_data(config: RunConfig, world: World) -> tuple[TokenStore, TokenStore | None]:
    """Both splits, of which each process reads through a share, and only what has changed since it was read."""
    store, heldout = open_splits(config)

    def verify() -> None:
        for split in filter(None, (store, heldout)):
            split.verify_changed(world.rank, world.size)

    world.everywhere(verify)
    return store, heldout


def _restore(
    plan: Plan,
    config: RunConfig,
    run_dir: Path,
    info: dict[str, Any],
    world: World,
    model: Decoder,
    optimizer: torch.optim.Optimizer,
) -> tuple[Reached, Written | None, Losses]:
    """Load the newest complete checkpoint, if there is one; what it says of the rows of metrics.jsonl; last losses."""
    saved, rollbacks = newest_checkpoint(run_dir, world), read_rollbacks(info)
    if saved is None:
        return Reached(wall_s=seconds_at(0, 0.0, rollbacks)), None, Losses(config.train.rollback)
    world.on_main(lambda: require_own(saved, load_config(run_dir), info))
    checkpoint.load_weights(saved.path, model, Shares(model))
    checkpoint.load_optimizer(saved.path, model, optimizer, Shares(model))
    state = saved.state
    reached = Reached(
        step=saved.step,
        wall_s=seconds_at(saved.step, state.get("wall_s", 0.0), rollbacks),
        skipped=state.get("skipped", 0),
        heldout=state.get("heldout"),
        # Made at the end, which may be further off now; older checkpoints have none.
        selection=state.get("selection") if saved.step == plan.steps else None,
    )
    return reached, saved.written, Losses(config.train.rollback, state.get("losses", []))
