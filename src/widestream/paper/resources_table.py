"""The resources of the paper's models as tables for the terminal."""

from typing import Any

from widestream.report.table import NONE, Table
from widestream.report.terminal import print_tables

COLUMNS = {
    "Parameters": {
        "printed": ("parameters", "printed"),
        "items of A.1": ("parameters", "itemised"),
        "without norm": ("parameters", "actual_without_norm"),
        "actual": ("parameters", "actual"),
    },
    "Forward FLOPs per token": {
        "printed": ("flops_per_token", "printed"),
        "items of A.2": ("flops_per_token", "itemised"),
        "without logits": ("flops_per_token", "actual_without_logits"),
        "actual": ("flops_per_token", "actual"),
    },
    "Bytes in training; of the stream per token": {
        "model": ("training_bytes", "parameters_and_optimizer"),
        "states saved": ("training_bytes", "stream_states_per_token"),
        "writes saved": ("training_bytes", "stream_writes_per_token"),
        "a state a layer": ("training_bytes", "one_state_a_layer_per_token", "float32"),
    },
    "Bytes in decoding, bf16": {
        "KV cache per token": ("decoding_bytes", "cache_per_token", "bf16"),
        "model and cache": ("decoding_bytes", "whole_context", "bf16"),
    },
}
"""Columns of each table, and where they lie in a model's costs."""


def print_resources(record: dict[str, Any]) -> None:
    """Print what `resources_record` gives, of the eight models."""
    tables = []
    for title, columns in COLUMNS.items():
        rows = tuple(
            (name, f"{costs['stream_size']:,}", *(_cell(costs, path) for path in columns.values()))
            for name, costs in record["models"].items()
        )
        tables.append(Table(title=title, caption="", columns=("", "stream", *columns), rows=rows))
    print_tables(tables)
    balance = record["tokens_at_equal_training_memory"]
    print(
        "The 405M transformer and the 305M RMT take the same memory in training, a state a layer kept, at "
        f"{balance['float32']:,.0f} tokens at a time in float32, {balance['bf16']:,.0f} in bf16; with more, RMT takes "
        "more. What a wider stream costs, and where that is less than one percent: widestream paper errata E9."
    )


def _cell(costs: Any, path: tuple[str, ...]) -> str:
    for name in path:
        costs = costs[name]
    return NONE if costs is None else f"{costs:,}"
