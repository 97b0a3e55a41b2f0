"""What the harness found item by item, as a record keeps it (`runs/tasks.py`)."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from widestream.harness.model import HarnessModel
from widestream.runs.tasks import Form, Items, Measure

Row = dict[str, Any]
"""A sample of the harness: its requests under `arguments`, the right answer under `target`, its scores by metric."""
FORMS: dict[str, Form] = {
    "perplexity": "perplexity", "weighted_perplexity": "perplexity", "bits_per_byte": "bits", "mean": "mean",
}  # fmt: skip
"""Aggregations of the harness whose figure follows from a mean over items."""


def measures(rows: Sequence[Row], aggregations: dict[str, tuple[str, bool]]) -> dict[str, Measure]:
    """The metrics that are means over items.

    Args:
        rows: samples, in the order of the data set.
        aggregations: name of the aggregation, and whether more is better, by metric.
    """
    found = {}
    for name, (aggregation, higher) in aggregations.items():
        if aggregation not in FORMS or not all(name in row for row in rows):
            continue
        form, values = FORMS[aggregation], [row[name] for row in rows]
        sign = 1.0 if form == "mean" else -1.0  # log-likelihoods, kept as nats
        if all(isinstance(value, int | float) for value in values):
            found[name] = Measure(form=form, higher_is_better=higher, values=[sign * value for value in values])
        elif all(isinstance(value, tuple | list) and len(value) == 2 for value in values):
            nats, weights = ([float(part) for part in column] for column in zip(*values, strict=True))
            found[name] = Measure(
                form=form, higher_is_better=higher, values=[sign * value for value in nats], weights=weights
            )
    return found


def describe_items(rows: Sequence[Row], model: HarnessModel) -> Items:
    """What the items are like, for this model's tokenizer."""
    asked = [_right_answer(row, model) for row in rows]
    return Items(
        choices=[len(row["arguments"]) for row in rows],
        context=[len(context) for context, _ in asked],
        answer=[answer for _, answer in asked],
        echo=[echo(context, answer) for context, answer in asked],
        positions=[model.rolled.get(row["arguments"][0][0], []) for row in rows],
    )


def by_token(items: Items) -> Measure:
    """Perplexity by token of whole texts, beside the harness's by word and by byte. The boundary is not counted."""
    sums = [[sum(column) for column in zip(*places, strict=True)] or [0.0, 0.0] for places in items.positions]
    nats, tokens = (list(column) for column in zip(*sums, strict=True))
    return Measure(form="perplexity", higher_is_better=False, values=nats, weights=tokens)


def fingerprint(rows: Sequence[Row]) -> str:
    """SHA-256 over all that was asked and what was right, in order."""
    asked = [[row["arguments"], str(row["target"])] for row in rows]
    return hashlib.sha256(json.dumps(asked, ensure_ascii=False, default=str).encode()).hexdigest()


def echo(context: Sequence[int], answer: Sequence[int]) -> int | None:
    """How many tokens back from the answer's first token the same tokens stood in the context last; None: nowhere."""
    size = len(answer)
    if not size:
        return None
    for at in range(len(context) - size, -1, -1):
        if list(context[at : at + size]) == list(answer):
            return len(context) - at
    return None


def _right_answer(row: Row, model: HarnessModel) -> tuple[list[int], list[int]]:
    """Ids of the context and of the right answer; of a whole text none, of what is generated the context alone."""
    arguments = [tuple(pair) for pair in row["arguments"]]
    if len(arguments[0]) < 2:
        return [], []
    target = row["target"]
    # Where contexts are what is chosen (WinoGrande), the target is what follows all of them.
    right = target if isinstance(target, int) and 0 <= target < len(arguments) else 0
    context, continuation = arguments[right]
    if not isinstance(continuation, str):
        return model.tok_encode(context), []
    return model._encode_pair(context, continuation) if context else (model.tok_encode(""), _alone(continuation, model))


def _alone(continuation: str, model: HarnessModel) -> list[int]:
    return model.tok_encode(continuation, add_special_tokens=False)
