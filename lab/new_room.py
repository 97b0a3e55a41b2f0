"""Does the room that `widestream widen` adds to a trained model get used? An experiment with its controls.

    widestream train modern/transformer data.path=OLD train.steps=3600 --out BASE     # the trained model
    python lab/new_room.py text --out python.jsonl                                    # other text: Python's own library
    widestream data prepare python.jsonl --tokenizer BASE --out NEW
    python lab/new_room.py run --base BASE --old OLD --new NEW --out ROOM             # several at once; goes on
    python lab/new_room.py table --out ROOM                                           # or lab/new-room.json.xz

The same with `--scale pretrained` for a model from elsewhere, imported by `widestream import hf`; OLD is then prose in
that model's tokens.

Every arm begins with the same function, sees the same batches for the same number of steps, and is tried at the same
rates; the best one (by the half of the held-out windows that is not reported) goes on to three seeds. Two regimes:
`frozen` trains new parameters alone, `full` the others too, at a rate of their own that is searched likewise.

    plain      the checkpoint trained on (full only)
    wide K     matrix_dense at D_k = K, K / R times the width, from `widen`
    identity   matrix_dense at D_k = R: keys that may mix what there is, and no new room
    lanes      hyper-connections, two lanes; `lanes, H_res = I`: lanes do not mix
    scalars    x0_scalars: a multiplier of the stream and of the embedding at every layer
    lora       W + B A on every matrix of a block, or on W_O alone, of the rank whose parameters come next to those of
               wide 4 R (frozen)
    neurons    MLPs with so many more neurons as cost the FLOPs that wide 4 R adds; they put out zero at first (full)
    layer      one more layer at the end, which puts out zero at first (full)
"""

import argparse
import json
import lzma
import math
import sysconfig
import tempfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor, nn
from torch.nn.utils import parametrize

from widestream.convert.stream import parse_stream, take_over
from widestream.convert.widen import widened
from widestream.data.batches import TrainBatches, divide_windows
from widestream.data.manifest import read_manifest
from widestream.data.store import TokenStore
from widestream.model.build import build_model
from widestream.model.costs import count_flops
from widestream.model.decoder import Decoder
from widestream.model.record import record_exchanges
from widestream.runs.model import load_model
from widestream.train.evaluate import evaluate
from widestream.train.parallel import World
from widestream.train.step import batch_loss

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Scale:
    """How much is done."""

    tokens: int
    """Of a window."""
    windows: int
    """Of a step."""
    steps: int
    every: int
    """Steps between measurements."""
    limit: int
    """Windows that a loss is measured on."""
    seeds: tuple[int, ...]
    rates: dict[str, tuple[float, ...]]
    factors: tuple[float, ...]
    """Full: rates of new parameters over those of the others."""
    arms: dict[str, tuple[str, ...]] | None = None
    """Regimes of the arms that are tried; None: all."""
    precision: str = "float32"
    """Of what is computed; weights and moments are float32."""


SCALES = {
    "demo": Scale(
        tokens=256, windows=8, steps=200, every=100, limit=64, seeds=(0, 1, 2), factors=(1.0, 10.0),
        rates={"frozen": (3e-3, 1e-2, 3e-2, 1e-1), "full": (3e-3, 1e-2, 3e-2)},
    ),
    "pretrained": Scale(
        tokens=128, windows=2, steps=200, every=100, limit=32, seeds=(0, 1, 2), factors=(10.0,),
        rates={"frozen": (3e-4, 1e-3, 3e-3), "full": (3e-5, 1e-4)},
        arms={
            "plain": ("full",), "wide 2 R": ("frozen", "full"), "identity": ("frozen",), "lora on W_O": ("frozen",),
            "scalars": ("frozen",),
        },
        precision="bf16",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Arm:
    """What is done to the checkpoint."""

    make: Callable[[Decoder], Decoder]
    """Gives a model of the same function; it may be the one that it was given."""
    new: tuple[str, ...] = ()
    """What names of new parameters hold; (): none are told apart."""
    regimes: tuple[str, ...] = ("frozen", "full")
    held: Callable[[str, Tensor], Tensor | None] = lambda name, value: None
    """A mask of what is trained of a parameter; None: all of it."""


KEYS = ("stream.read_", "stream.write_")


def wide(times: int) -> Arm:
    """`times` the width; 1: keys alone."""
    return Arm(lambda old: widened(old, times * old.config.num_heads, 0.02, 0), KEYS)


def converted(stream: str, *new: str, held: Callable[[str, Tensor], Tensor | None] = lambda name, value: None) -> Arm:
    """Another stream that starts plain."""

    def make(old: Decoder) -> Decoder:
        model = build_model(replace(old.config, stream=parse_stream(stream)), 0)
        take_over(model, old)
        return model

    return Arm(make, new, held=held)


def unmixed(name: str, value: Tensor) -> Tensor | None:
    """Of a table A [S, n, 1 + n] of hyper-connections the column of reads alone: lanes carry themselves."""
    if not name.endswith(".A"):
        return None
    mask = torch.zeros_like(value)
    mask[..., 0] = 1
    return mask


class LowRank(nn.Module):
    """W + B A; B [out, r] from zero."""

    def __init__(self, weight: Tensor, rank: int, seed: int):
        super().__init__()
        out, width = weight.shape
        normal = torch.randn(rank, width, generator=torch.Generator().manual_seed(seed))
        self.lora_A = nn.Parameter(normal / math.sqrt(width))
        self.lora_B = nn.Parameter(torch.zeros(out, rank))

    def forward(self, weight: Tensor) -> Tensor:
        """[out, in] -> [out, in]."""
        return weight + self.lora_B @ self.lora_A


def low_rank(old: Decoder, only: str = "") -> Decoder:
    """On matrices of the blocks, of the rank whose number of parameters is next to that of wide 4 R; 1 at least."""
    wider = wide(4).make(old)
    wanted = sum(value.numel() for name, value in wider.named_parameters() if name.startswith(KEYS))
    places = [
        (module, name, value)
        for module in old.blocks.modules()
        for name, value in module.named_parameters(recurse=False)
        if value.dim() == 2 and only in ("", name)
    ]
    rank = max(1, round(wanted / sum(sum(value.shape) for *_, value in places)))
    for seed, (module, name, value) in enumerate(places):
        parametrize.register_parametrization(module, name, LowRank(value, rank, seed))
    return old


@torch.no_grad()
def more_neurons(old: Decoder) -> Decoder:
    """As many as cost what wide 4 R adds in FLOPs, rounded up; W_2 reads nothing of them at first."""
    added = sum(count_flops(wide(4).make(old)).values()) - sum(count_flops(old).values())
    config = old.config
    matrices = 3 if config.gated else 2
    more = math.ceil(added / (2 * matrices * config.embed_dim * config.num_layers))
    new = build_model(replace(config, mlp_dim=config.mlp_dim + more), 0)
    theirs = old.state_dict()
    for name, value in new.state_dict().items():
        if name.endswith(".w1"):
            parts = matrices - 1
            for there, here in zip(theirs[name].chunk(parts), value.chunk(parts), strict=True):
                here[: len(there)] = there
        elif name.endswith(".w2"):
            value.zero_()[:, : config.mlp_dim] = theirs[name]
        else:
            value.copy_(theirs[name])
    return new


@torch.no_grad()
def one_layer_more(old: Decoder) -> Decoder:
    """At the end; attention and MLP put out zero at first."""
    new = build_model(replace(old.config, num_layers=old.config.num_layers + 1), 0)
    theirs, blocks = old.state_dict(), old.config.num_blocks
    head = f"stream.norms.{blocks + 2}."
    for name, value in new.state_dict().items():
        source = name.replace(head, f"stream.norms.{blocks}.") if name.startswith(head) else name
        mine = name.startswith(tuple(f"stream.norms.{site}." for site in (blocks, blocks + 1)))
        if source in theirs and not mine:
            value.copy_(theirs[source])
        elif name.endswith((".out", ".w2")):
            value.zero_()
    return new


ARMS = {
    "plain": Arm(lambda old: old, regimes=("full",)),
    "wide 2 R": wide(2),
    "wide 4 R": wide(4),
    "wide 8 R": wide(8),
    "identity": wide(1),
    "lanes": converted("hyper_connections:lanes=2", "stream.A", "stream.B", "stream.W", "stream.s_"),
    "lanes, H_res = I": converted("hyper_connections:lanes=2,dynamic=false", "stream.A", "stream.B", held=unmixed),
    "scalars": converted("x0_scalars", "stream.lambdas", "stream.mus"),
    "lora": Arm(low_rank, ("lora_",), regimes=("frozen",)),
    "lora on W_O": Arm(lambda old: low_rank(old, "out"), ("lora_",), regimes=("frozen",)),
    "neurons": Arm(more_neurons, regimes=("full",)),
    "layer": Arm(one_layer_more, regimes=("full",)),
}


@dataclass(frozen=True)
class Job:
    """One training."""

    arm: str
    regime: str
    rate: float
    factor: float
    seed: int

    @property
    def file(self) -> str:
        """Name of its record."""
        name = "".join(c if c.isalnum() else "-" for c in self.arm)
        return f"{name}_{self.regime}_{self.rate:g}_{self.factor:g}_{self.seed}.json"


def searched(scale: Scale) -> list[Job]:
    """The search: one seed at every rate."""
    regimes = scale.arms or {name: arm.regimes for name, arm in ARMS.items()}
    return [
        Job(name, regime, rate, factor, scale.seeds[0])
        for name, own in regimes.items()
        for regime in own
        for rate in scale.rates[regime]
        for factor in (scale.factors if regime == "full" and ARMS[name].new else (1.0,))
    ]


def chosen(out: Path, scale: Scale) -> list[Job]:
    """The best of every arm whose search is done, at all seeds."""
    jobs: list[Job] = []
    for name, regime in product(ARMS, scale.rates):
        mine = [job for job in searched(scale) if (job.arm, job.regime) == (name, regime)]
        if mine and all((out / job.file).is_file() for job in mine):
            best = min(mine, key=lambda job: read(out, job)["rows"][-1]["new, chosen on"])
            jobs += [replace(best, seed=seed) for seed in scale.seeds]
    return jobs


def read(out: Path, job: Job) -> dict[str, Any]:
    """Its record."""
    return json.loads((out / job.file).read_text())


def train(job: Job, scale: Scale, base: Path, old_data: Path, new_data: Path) -> dict[str, Any]:
    """Train one arm; rows of losses and of what the new rows hold."""
    torch.manual_seed(job.seed)
    arm = ARMS[job.arm]
    model = arm.make(load_model(base, CPU)[0]).train()
    rates = {}
    for name, value in model.named_parameters():
        fresh = any(part in name for part in arm.new)
        gain = job.regime == "frozen" and not fresh
        rates[name] = 0.0 if gain else job.rate * (job.factor if fresh else 1.0)
        value.requires_grad_(rates[name] > 0)
        if fresh and (mask := arm.held(name, value.detach())) is not None:
            value.register_hook(lambda gradient, mask=mask: gradient * mask)
    trained = [(value, rates[name]) for name, value in model.named_parameters() if rates[name]]
    groups = [
        {"params": [value for value, own in trained if own == rate], "lr": rate, "peak": rate}
        for rate in sorted({rate for _, rate in trained})
    ]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), weight_decay=0.0)
    batches = TrainBatches(opened(new_data, "train"), scale.tokens, scale.windows, job.seed)
    rows = [measured(model, 0, scale, old_data, new_data)]
    for step in range(scale.steps):
        progress = step / scale.steps
        share = min((step + 1) / (scale.steps / 10), 0.1 + 0.45 * (1 + math.cos(math.pi * progress)))
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * share
        optimizer.zero_grad(set_to_none=True)
        batch_loss(model, batches.at(step), CPU, scale.precision).total.backward()
        nn.utils.clip_grad_norm_([value for value, _ in trained], 1.0)
        optimizer.step()
        if (step + 1) % scale.every == 0:
            rows.append(measured(model, step + 1, scale, old_data, new_data))
    fresh = sum(v.numel() for name, v in model.named_parameters() if any(part in name for part in arm.new))
    return {
        "job": job.__dict__,
        "new": fresh,
        "trained": sum(value.numel() for value, _ in trained),
        "parameters": sum(value.numel() for value in model.parameters()),
        "flops": sum(count_flops(model).values()) if not job.arm.startswith("lora") else None,
        "rows": rows,
    }


def opened(data: Path, split: str) -> TokenStore:
    """A split of prepared data."""
    return TokenStore(data, split, read_manifest(data))


@torch.no_grad()
def measured(model: Decoder, step: int, scale: Scale, old_data: Path, new_data: Path) -> dict[str, float]:
    """Held-out losses, and how much of the last state's square lies in rows that the checkpoint had not."""
    row: dict[str, float] = {"step": step}
    new, old = opened(new_data, "heldout"), opened(old_data, "heldout")
    reported, chosen_on = divide_windows(new, scale.tokens, 0.5)
    for part, store, among in (("new", new, reported), ("new, chosen on", new, chosen_on), ("old", old, None)):
        row[part] = evaluate(
            model, store, world=World(CPU), sequence_length=scale.tokens, batch_size=scale.windows,
            precision=scale.precision, limit=scale.limit, among=among,
        ).loss  # fmt: skip
    rows = getattr(model.config.stream, "key_dim", 0)
    if rows > model.config.num_heads:
        batch = TrainBatches(new, scale.tokens, 4, 0).at(0)
        with record_exchanges(model) as exchanges:
            model(batch.tokens, batch.segments)
        by_row = exchanges[-1].state.float().square().sum((0, 1, 2))  # of a state [B, T, D_v, D_k]
        row["share in new rows"] = (by_row[model.config.num_heads :].sum() / by_row.sum()).item()
    return row


def text(out: Path) -> None:
    """Modules of Python's standard library, as jsonl; one in twenty is held out."""
    library = Path(sysconfig.get_paths()["stdlib"])
    own = [
        path
        for path in sorted(library.rglob("*.py"))
        if not {"site-packages", "dist-packages", "test"} & set(path.parts)
    ]
    with out.open("w") as file:
        for path in own:
            title = str(path.relative_to(library))
            split = "heldout" if zlib.crc32(title.encode()) % 20 == 0 else "train"
            module = {"title": title, "split": split, "text": path.read_text(errors="replace")}
            file.write(json.dumps(module) + "\n")


def run(out: Path, scale: Scale, base: Path, old_data: Path, new_data: Path) -> None:
    """What is not done yet; several of these may run at once."""
    out.mkdir(parents=True, exist_ok=True)
    while left := [job for job in searched(scale) + chosen(out, scale) if not (out / job.file).is_file()]:
        free = [job for job in left if not (out / f"{job.file}.claim").exists()]
        if not free:
            return
        claim = out / f"{free[0].file}.claim"
        try:
            claim.touch(exist_ok=False)
        except FileExistsError:
            continue
        try:
            record = train(free[0], scale, base, old_data, new_data)
            (out / free[0].file).write_text(json.dumps(record, indent=1))
            print(free[0].file, {name: round(value, 4) for name, value in record["rows"][-1].items()}, flush=True)
        finally:
            claim.unlink()


def table(out: Path, scale: Scale) -> None:
    """Every arm at its best rate: losses with 95 % t-intervals of the difference to the reference, seed by seed."""
    jobs = [job for job in dict.fromkeys(chosen(out, scale)) if (out / job.file).is_file()]
    references = {"full": "plain", "frozen": "lora" if scale.arms is None else "lora on W_O"}
    for regime, reference in references.items():
        print(f"\n| {regime} | new parameters | rate, factor | new data | minus {reference} | old data | in new rows |")
        print("|---|---|---|---|---|---|---|")
        last = {job: read(out, job)["rows"][-1] for job in jobs if job.regime == regime}
        by_arm = {name: {job.seed: row for job, row in last.items() if job.arm == name} for name in ARMS}
        for job in {job.arm: job for job in last}.values():
            mine, theirs = by_arm[job.arm], by_arm[reference]
            differences = np.array([mine[seed]["new"] - theirs[seed]["new"] for seed in mine if seed in theirs])
            cells = [
                job.arm,
                f"{read(out, job)['new']:,}",
                f"{job.rate:g}, {job.factor:g}",
                f"{mean(mine, 'new'):.4f}",
                "" if job.arm == reference else interval(differences),
                f"{mean(mine, 'old'):.4f}",
                f"{mean(mine, 'share in new rows'):.4f}",
            ]
            print(f"| {' | '.join(cells)} |")


def mean(rows: dict[int, dict[str, float]], name: str) -> float:
    """Over seeds; NaN where nothing was measured."""
    return float(np.mean([row.get(name, math.nan) for row in rows.values()]))


def interval(differences: np.ndarray) -> str:
    """Mean and 95 % t-interval."""
    if len(differences) < 2:
        return "".join(f"{value:+.4f}" for value in differences)
    half = stats.t.ppf(0.975, len(differences) - 1) * differences.std(ddof=1) / math.sqrt(len(differences))
    return f"{differences.mean():+.4f} ({differences.mean() - half:+.4f} to {differences.mean() + half:+.4f})"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Does the new room of a widened stream get used?")
    parser.add_argument("do", choices=["text", "run", "table"])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--scale", choices=list(SCALES), default="demo")
    for name in ("base", "old", "new"):
        parser.add_argument(f"--{name}", type=Path)
    given = parser.parse_args()
    if given.do == "text":
        text(given.out)
    elif given.do == "table" and given.out.suffix == ".xz":
        with tempfile.TemporaryDirectory() as folder, lzma.open(given.out) as records:
            for name, record in json.load(records).items():
                (Path(folder) / Path(name).name).write_text(json.dumps(record))
            table(Path(folder), SCALES[given.scale])
    elif given.do == "table":
        table(given.out, SCALES[given.scale])
    else:
        torch.set_num_threads(1)
        run(given.out, SCALES[given.scale], given.base, given.old, given.new)
