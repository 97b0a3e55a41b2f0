"""`widestream compare`: runs side by side in the terminal, as JSON, as a table or as an HTML report."""

from pathlib import Path
from typing import Annotated

import typer

from widestream.cli.as_json import STDOUT, Json, print_json


def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders, or folders that hold several.")],
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Write the HTML report here.")] = None,
    search: Annotated[
        Path | None, typer.Option("--search", metavar="FILE", help="Learning-rate search record (JSON) to show.")
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option("--reference", metavar="NAME", help="Model, or run folder, that all others are compared with."),
    ] = None,
    against: Annotated[
        list[str] | None,
        typer.Option("--against", metavar="MODEL=OTHER", help="Compare a model with another than the reference."),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option("--only", metavar="PATTERN", help="Keep these: name or folder (a-*), or optimizer.lr=0.01."),
    ] = None,
    without: Annotated[
        list[str] | None, typer.Option("--without", metavar="PATTERN", help="Leave these out, named in the same way.")
    ] = None,
    table: Annotated[
        Path | None, typer.Option("--csv", metavar="FILE", help="Write one row a run as CSV; - for standard output.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Compare runs: held-out loss at equal tokens, FLOPs and time, resources to equal loss, and a verdict."""
    from widestream import report
    from widestream.errors import UserError

    if as_json and table == STDOUT:
        raise UserError("Both --json and --csv - print to standard output; give one of them, or --csv FILE.")
    choice = report.Choice(
        reference=reference,
        against=tuple(map(_pair, against or ())),
        only=tuple(only or ()),
        without=tuple(without or ()),
    )
    if out is None:
        comparison = report.compare(runs, choice)
    else:
        comparison = report.write_report(runs, out, search=search, choice=choice)
    if table == STDOUT:
        typer.echo(report.to_csv(comparison), nl=False)
        return
    if table is not None:
        report.write_csv(comparison, table)
    if as_json:
        print_json(comparison.to_dict())
    else:
        report.print_table(comparison)
    for what, place in {"Report": out, "Table": table}.items():
        if place is not None and not as_json:
            typer.echo(f"{what}: {place}")


def _pair(text: str) -> tuple[str, str]:
    from widestream.errors import UserError

    model, equals, other = text.partition("=")
    if not (model and equals and other):
        raise UserError(f"--against {text} is not MODEL=OTHER, two models or run folders.")
    return model, other
