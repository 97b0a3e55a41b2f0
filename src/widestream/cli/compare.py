"""`widestream compare`: runs side by side in the terminal, as JSON or as an HTML report."""

from pathlib import Path
from typing import Annotated

import typer


def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders, or folders that hold several.")],
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Write the HTML report here.")] = None,
    search: Annotated[
        Path | None, typer.Option("--search", metavar="FILE", help="Learning-rate search record (JSON) to show.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the comparison as JSON instead of tables.")] = False,
) -> None:
    """Compare runs: held-out loss at equal tokens, FLOPs and time, resources to equal loss, and a verdict."""
    import json

    from widestream import report

    comparison = report.compare(runs) if out is None else report.write_report(runs, out, search=search)
    if as_json:
        typer.echo(json.dumps(comparison.to_dict(), allow_nan=False))
    else:
        report.print_table(comparison)
        if out is not None:
            typer.echo(f"Report: {out}")
