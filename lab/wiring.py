"""How many wires does a trained model need, and does a wider stream hold more?

    python lab/wiring.py cut RUN... --data DATA --out wiring.json    # wires cut, smallest first, until the loss moves
    python lab/wiring.py hold RUN... --data DATA --out held.json     # rank and rows in use, site by site
    python lab/wiring.py table wiring.json                           # or held.json: means over seeds and intervals

A wire runs from a writer (a head, a data vector, an MLP) to a later reader (a head's query, key or value; a data
vector; a block's vector). Wires are put in order by what flows on them on one half of the held-out windows; cut are the
smallest ones, all at once; the loss is that of the other half. The share that can be cut before the loss has risen by
0.01 nats is found by bisection. The same is done in random order, and in order of coefficients where keys give them.
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from scipy import stats
from torch import Tensor

from widestream.data.store import TokenStore
from widestream.errors import UserError
from widestream.lens import Seen, Wiring, cut, edit, flow, held, keys, look
from widestream.model.decoder import Decoder
from widestream.runs.folder import load_config
from widestream.runs.model import load_model

WINDOWS, ROSE, STEPS = 4, 0.01, 9
"""Windows in each half; nats; bisections of the share."""


def windows(data: Path, length: int) -> tuple[Tensor, Tensor]:
    """Two halves of held-out windows [WINDOWS, length + 1] each, evenly spaced over the text."""
    store = TokenStore.open(data, "heldout")
    count = (store.tokens - 1) // length
    starts = [length * (count * i // (2 * WINDOWS)) for i in range(2 * WINDOWS)]
    rows = torch.stack([torch.as_tensor(store.window(start, length + 1)[0].astype("int64")) for start in starts])
    return rows[::2], rows[1::2]


@torch.no_grad()
def loss_of(model: Decoder, rows: Tensor, cuts: list[Any]) -> float:
    """Mean cross-entropy with these wires cut."""
    if not cuts:
        return model.loss(rows[:, :-1], rows[:, 1:]).cross_entropy.item()
    with edit(model, *cuts):
        return model.loss(rows[:, :-1], rows[:, 1:]).cross_entropy.item()


def wires(found: Wiring, values: Tensor) -> list[Any]:
    """All wires, the smallest value first."""
    order = values.abs().nan_to_num(torch.inf).flatten().argsort()
    number = int((~values.isnan()).sum())
    pairs = [divmod(int(index), len(found.writers)) for index in order[:number]]
    return [cut(found.writers[w], found.readers[r]) for r, w in pairs]


def share_without_loss(model: Decoder, rows: Tensor, order: list[Any]) -> tuple[float, list[tuple[float, float]]]:
    """The share of wires that can be cut, and the losses that were tried."""
    whole, low, high = loss_of(model, rows, []), 0.0, 1.0
    tried = [(0.0, whole)]
    for _ in range(STEPS):
        middle = (low + high) / 2
        now = loss_of(model, rows, order[: int(middle * len(order))])
        tried.append((middle, now))
        low, high = (middle, high) if now - whole < ROSE else (low, middle)
    return low, sorted(tried)


def cut_run(run: Path, data: Path) -> dict[str, Any]:
    """Of one run."""
    model, _ = load_model(run, torch.device("cpu"))
    flows, judged = windows(data, load_config(run).model.context)
    seen = look(model, flows[:, :-1])
    found = flow(seen, skip=1)
    orders = {"flow": wires(found, found.size)}
    chance = torch.rand(found.size.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    orders["random"] = wires(found, chance.masked_fill(found.size.isnan(), torch.nan))
    if (by_keys := coefficients(seen)) is not None:
        orders["keys"] = wires(found, by_keys)
    record: dict[str, Any] = {
        "wires": len(orders["flow"]),
        "writers": len(found.writers),
        "readers": len(found.readers),
    }
    for name, order in orders.items():
        share, tried = share_without_loss(model, judged, order)
        record[name] = {"share": share, "needed": round((1 - share) * len(order)), "tried": tried}
    return record


def coefficients(seen: Seen) -> Tensor | None:
    """Mean sizes of coefficients, where keys alone give them."""
    try:
        return keys(seen).columns.abs().mean(-1)
    except UserError:
        return None


def hold_run(run: Path, data: Path) -> dict[str, Any]:
    """What the stream holds in front of every reader."""
    model, _ = load_model(run, torch.device("cpu"))
    flows, _ = windows(data, load_config(run).model.context)
    seen = look(model, flows[:, :-1])
    sites = [held(seen, site, most_tokens=512) for site in range(seen.last + 1)]
    return {name: [getattr(site, name) for site in sites] for name in sites[0].__slots__}


def interval(values: list[float]) -> str:
    """Mean and 95 % interval over seeds (Student's t)."""
    mean = sum(values) / len(values)
    if len(values) < 2:
        return f"{mean:.3f}"
    half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
    return f"{mean:.3f} ({mean - half:.3f} to {mean + half:.3f})"


def table(path: Path) -> None:
    """Print means over seeds, an arm a line."""
    arms: dict[str, list[Any]] = defaultdict(list)
    for name, record in json.loads(path.read_text()).items():
        arms[name.rsplit("-seed", 1)[0]].append(record)
    for arm, records in arms.items():
        if "wires" in records[0]:
            parts = [f"{records[0]['wires']} wires"]
            parts += [
                f"{order}: cut {interval([r[order]['share'] for r in records])}, needed "
                f"{sum(r[order]['needed'] for r in records) / len(records):.0f}"
                for order in ("flow", "keys", "random")
                if order in records[0]
            ]
        else:
            last = {name: interval([r[name][-1] for r in records]) for name in ("rank", "token_rank", "rows")}
            parts = [f"{name} in front of the head {value}" for name, value in last.items()]
        print(f"{arm} ({len(records)} seeds): " + "; ".join(parts))


def main() -> None:
    """See the file's beginning."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("cut", "hold", "table"))
    parser.add_argument("runs", type=Path, nargs="+", help="NAME-seedN=FOLDER, or a folder; for table: the record")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.action == "table":
        table(args.runs[0])
        return
    torch.set_num_threads(1)
    record = json.loads(args.out.read_text()) if args.out.exists() else {}
    for given in args.runs:
        name, _, folder = str(given).rpartition("=")
        name = name or Path(folder).name
        if name not in record:
            record[name] = (cut_run if args.action == "cut" else hold_run)(Path(folder), args.data)
            args.out.write_text(json.dumps(record, indent=1))
            print(name, {key: value for key, value in record[name].items() if key == "wires"}, flush=True)


if __name__ == "__main__":
    main()
