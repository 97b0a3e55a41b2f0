"""A model on a prompt as sentences, tables, one JSON document and a page."""

import base64
import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from widestream.experiments.lens import against_section, lanes_section, packing
from widestream.experiments.lens.against import Beside
from widestream.experiments.lens.over_training import OverTraining
from widestream.experiments.lens.prompt import Inspection
from widestream.files import write_page
from widestream.report.figures.drawing import in_script
from widestream.report.page import render_page
from widestream.report.table import NONE, Table

TOP = 20
"""Writers and wires in tables."""
CELLS = 2_500_000
"""Most attention weights in a page, one byte each."""


def sentences(found: Inspection) -> list[str]:
    """What comes next, and who wrote it."""
    first = found.guesses[0]
    lines = [
        f"After {_quoted(found.prompt[-40:])} comes {_quoted(first.text)} with {first.probability:.1%}, then "
        + ", ".join(f"{_quoted(guess.text)} {guess.probability:.1%}" for guess in found.guesses[1:4])
        + "."
    ]
    if found.attribution is None:
        return [*lines, found.refusal]
    sums = {one: value[0, -1].item() for one, value in found.attribution.by_site().items()}
    up, down = (f(sums, key=lambda one: sums[one]) for f in (max, min))
    logit = found.attribution.logit[0, -1].item()
    lines.append(
        f"The logit of {_quoted(found.texts[found.targets[-1]])}, {logit:.2f}, is the sum of what {len(sums)} writers "
        f"have written ({found.attribution.exactness}, with the norms' scales held): most by {up.name} "
        f"({sums[up]:+.2f}), against it most by {down.name} ({sums[down]:+.2f})."
    )
    return lines


def guess_table(found: Inspection) -> Table:
    """What comes next."""
    rows = tuple((_quoted(guess.text), str(guess.token), f"{guess.probability:.2%}") for guess in found.guesses)
    return Table(title="What comes next", caption="", columns=("token", "id", "probability"), rows=rows)


def writer_table(found: Inspection) -> Table | None:
    """Who adds most to the logit, and who takes most from it."""
    if found.attribution is None:
        return None
    values = found.attribution.values[:, 0, -1]
    order = values.abs().argsort(descending=True)[:TOP].tolist()
    rows = tuple((found.attribution.writers[i].name, f"{values[i].item():+.3f}") for i in order)
    rest = values.sum().item() - values[order].sum().item()
    rows += (("all others", f"{rest:+.3f}"), ("constants", f"{found.attribution.constants[0, -1].item():+.3f}"))
    caption = f"Parts of the logit of {_quoted(found.texts[found.targets[-1]])} at the last token, in logits."
    return Table(title="Who wrote it", caption=caption, columns=("writer", "adds"), rows=rows)


def wire_table(found: Inspection) -> Table | None:
    """The wires on which most flows."""
    if found.wiring is None:
        return None
    part = {
        (w, r): float(found.wiring.part[row, column])
        for row, r in enumerate(found.wiring.readers)
        for column, w in enumerate(found.wiring.writers)
    }
    rows = tuple((w.name, r.name, f"{size:.3f}", f"{part[w, r]:+.3f}") for w, r, size in found.wiring.largest(TOP))
    caption = (
        "Size: the writer's share over all that the reader gets, root mean squares over the prompt's tokens but the "
        "first. Part: along what is read; parts sum to 1 over writers."
    )
    return Table(
        title="Where most flows", caption=caption, columns=("writer", "reader", "size", "part"), rows=rows, words=2
    )


def site_table(found: Inspection) -> Table:
    """What the stream holds in front of every reader."""
    lenses = {one.reader: one for one in found.sites}
    rows = []
    for name, held in found.held.items():
        lens = lenses.get(name)
        best = (
            (NONE, NONE) if lens is None else (_quoted(found.texts[lens.likeliest[-1]]), f"{lens.probability[-1]:.1%}")
        )
        numbers = (held.norm, held.update, held.rank, held.token_rank, held.rows)
        rows.append((name, *best, *(NONE if x != x else f"{x:.3g}" for x in numbers)))
    return Table(
        title="What the stream holds",
        caption="In front of each reader: what the head would say there at the last token; root mean square; size of "
        "the last write over that of the stream; effective rank of a token's state, and of all tokens' states "
        "together; rows in use of a matrix stream's D_k.",
        columns=("reader", "likeliest", "", "rms", "update", "rank", "rank over tokens", "rows"),
        rows=tuple(rows),
        words=2,
    )


def to_dict(found: Inspection) -> dict[str, Any]:
    """Everything but the attention patterns of earlier tokens, as plain values."""
    record: dict[str, Any] = {
        "run": found.run,
        "step": found.step,
        "stream": found.stream,
        "prompt": found.prompt,
        "tokens": found.tokens,
        "next": [vars(guess) for guess in found.guesses],
        "target": {"token": found.targets[-1], "text": found.texts[found.targets[-1]]},
        "refusal": found.refusal or None,
        "held": {name: vars_of(held) for name, held in found.held.items()},
        "logit_lens": [
            {
                "reader": one.reader,
                "token": one.likeliest[-1],
                "text": found.texts[one.likeliest[-1]],
                "probability": one.probability[-1],
                "of_target": one.of_target[-1],
            }
            for one in found.sites
        ],
        "attention": {name: pattern[:, -1].tolist() for name, pattern in found.patterns.items()},
        "lanes": found.lanes and lanes_section.mixing_dict(found.lanes),
        "gates": lanes_section.gate_dicts(found.gates),
    }
    if found.attribution is not None and found.wiring is not None:
        values = found.attribution.values[:, 0, -1].tolist()
        record["attribution"] = {
            "exactness": str(found.attribution.exactness),
            "logit": found.attribution.logit[0, -1].item(),
            "constants": found.attribution.constants[0, -1].item(),
            "writers": {one.name: value for one, value in zip(found.attribution.writers, values, strict=True)},
        }
        record["wires"] = {"size": found.wiring.named(found.wiring.size), "part": found.wiring.named(found.wiring.part)}
    return record


def vars_of(held: Any) -> dict[str, float]:
    """The fields of a dataclass with slots."""
    return {name: getattr(held, name) for name in held.__slots__}


@dataclass(frozen=True, kw_only=True)
class Shown:
    """What is shown of a model on a prompt."""

    found: Inspection
    beside: Beside | None = None
    """Another model's wiring, if one was asked for."""
    training: OverTraining | None = None
    """The wiring over training, likewise."""

    def sentences(self) -> list[str]:
        """All of them."""
        more = [] if self.beside is None else against_section.sentences(self.found, self.beside)
        over = [] if self.training is None else [self.training.sentence()]
        lanes = [] if self.found.lanes is None else [lanes_section.sentence(self.found.lanes)]
        return [*sentences(self.found), *lanes, *more, *over]

    def tables(self) -> list[Table]:
        """All of them."""
        found = self.found
        tables = [guess_table(found), writer_table(found), wire_table(found)]
        if self.beside is not None:
            tables.append(against_section.table(found, self.beside))
        tables.append(site_table(found))
        tables.append(lanes_section.gate_table(found.gates) if found.gates else None)
        return [table for table in tables if table is not None]

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values."""
        record = to_dict(self.found)
        if self.beside is not None:
            record["against"] = against_section.to_dict(self.beside)
        if self.training is not None:
            record["over_training"] = self.training.to_dict()
        return record

    def page_data(self) -> dict[str, Any]:
        """What the page's script draws."""
        record = page_data(self.found)
        if self.beside is not None:
            record["against"] = against_section.page_data(self.found, self.beside)
        return record


def write_lens_page(shown: Shown, path: Path, command: list[str]) -> None:
    """Write the page.

    Raises:
        UserError: it cannot be written, or a file of another kind lies there.
    """
    found = shown.found
    page = render_page(
        "lens_page.html",
        title=f"{found.run.name}: {found.prompt[:60]}",
        sentences=shown.sentences(),
        found=found,
        training=shown.training and shown.training.chart(),
        tables=shown.tables(),
        data=in_script(json.dumps(shown.page_data(), ensure_ascii=False, allow_nan=False, separators=(",", ":"))),
        commands=[shlex.join(command)],
    )
    write_page(path, page)


def page_data(found: Inspection) -> dict[str, Any]:
    """What the page's script draws; numbers of many cells as bytes in base64."""
    cells = sum(pattern.numel() for pattern in found.patterns.values())
    whole = cells <= CELLS
    heads = [f"{name}.{head}" for name, pattern in found.patterns.items() for head in range(len(pattern))]
    patterns = [pattern if whole else pattern[:, -1:] for pattern in found.patterns.values()]
    record: dict[str, Any] = {
        "tokens": found.tokens,
        "targets": [found.texts[token] for token in found.targets],
        "lanes": found.lanes and lanes_section.page_data(found.lanes),
        "heads": heads,
        "attention": {"whole": whole, "bytes": packing.packed(torch.cat([p.flatten(1) for p in patterns]), 1.0)}
        if heads
        else None,
        "lens": {
            "readers": [one.reader for one in found.sites],
            "likeliest": [[found.texts[token] for token in one.likeliest] for one in found.sites],
            "probability": [[round(p, 4) for p in one.probability] for one in found.sites],
            "target": [[round(p, 4) for p in one.of_target] for one in found.sites],
        },
    }
    if found.attribution is not None and found.wiring is not None:
        values = found.attribution.values[:, 0]
        record["attribution"] = {
            "writers": [one.name for one in found.attribution.writers],
            "logit": [round(x, 4) for x in found.attribution.logit[0].tolist()],
            "constants": [round(x, 4) for x in found.attribution.constants[0].expand(len(found.tokens)).tolist()],
            "values": base64.b64encode(values.float().cpu().numpy().astype("<f4").tobytes()).decode(),
        }
        record["wiring"] = {
            "writers": [one.name for one in found.wiring.writers],
            "readers": [one.name for one in found.wiring.readers],
            "views": _views(found),
        }
    return record


def _views(found: Inspection) -> dict[str, dict[str, Any]]:
    """Matrices of readers and writers: size, part and, of a matrix stream, coefficients."""
    assert found.wiring is not None
    views = {"size": found.wiring.size, "part": found.wiring.part}
    if found.keys is not None and [one.name for one in found.keys.writers] == [
        one.name for one in found.wiring.writers
    ]:
        views["coefficient"] = found.keys.mean
    return {name: packing.view(values, packing.largest(values)) for name, values in views.items()}


def _quoted(text: str) -> str:
    """Text in quotation marks, its line breaks shown."""
    return f"“{text}”".replace("\n", "⏎").replace("\t", "⇥")
