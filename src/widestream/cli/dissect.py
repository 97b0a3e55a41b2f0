"""`widestream dissect`: two models item by item on downstream tasks."""

from pathlib import Path
from typing import Annotated

import typer

from widestream.cli.as_json import STDOUT, Json, print_json


def dissect(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Runs of two models, or folders that hold them.")
    ],
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Write the HTML page here.")] = None,
    reference: Annotated[
        str | None,
        typer.Option("--reference", metavar="NAME", help="Model, or run folder, that the other is compared with."),
    ] = None,
    table: Annotated[
        Path | None, typer.Option("--csv", metavar="FILE", help="Write a row an item as CSV; - for standard output.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Compare two models item by item on tasks that `eval --tasks` scored: paired tests, and where one of them wins."""
    from widestream.errors import UserError
    from widestream.experiments.dissect import section
    from widestream.experiments.dissect.pairs import dissect as compare_items
    from widestream.report.terminal import print_tables

    if as_json and table == STDOUT:
        raise UserError("Both --json and --csv - print to standard output; give one of them, or --csv FILE.")
    found = compare_items(runs, reference)
    if out is not None:
        section.write_dissection(found, out)
    if table == STDOUT:
        typer.echo(section.to_csv(found), nl=False)
        return
    if table is not None:
        section.write_csv(found, table)
    if as_json:
        print_json(section.to_dict(found))
        return
    shown = section.task_differences(found).without("by bootstrap", "alone right")
    print_tables([shown, *filter(None, [section.beside_paper(found)])])
    for line in (*section.sentences(found), *(f"Note: {note}" for note in found.notes)):
        typer.echo(line)
    for what, place in {"Page": out, "Table": table}.items():
        if place is not None:
            typer.echo(f"{what}: {place}")
