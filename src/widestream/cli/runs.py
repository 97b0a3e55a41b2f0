"""`widestream runs`: what lies on the disk."""

from pathlib import Path
from typing import Annotated

import typer

from widestream.cli.as_json import Json, print_json

Places = Annotated[list[Path] | None, typer.Argument(help="Run folders, or folders that hold them. Default: runs.")]
Only = Annotated[
    list[str] | None,
    typer.Option("--only", help="Runs like this: a name ('rmt-*'), or KEY=VALUE of the recipe. May be given again."),
]


def list_(
    places: Places = None,
    only: Only = None,
    tag: Annotated[list[str] | None, typer.Option("--tag", help="Runs with this tag. May be given again.")] = None,
    as_json: Json = False,
) -> None:
    """List runs: state, steps, held-out loss, room on the disk, tags."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from widestream.runs.shelf import list_runs

    rows = list_runs(places or [Path("runs")], only or [], tag or [])
    if as_json:
        print_json(rows)
        return
    table = Table("folder", "state", "steps", "loss", "started", "MB", "tags")
    for row in rows:
        steps, loss = ("" if x is None else form.format(x) for x, form in ((row.steps, "{:,}"), (row.loss, "{:.4f}")))
        cells = (row.folder, row.state, steps, loss, (row.started or "")[:16], f"{row.bytes / 1e6:,.1f}")
        table.add_row(*map(escape, (*cells, " ".join(row.tags))))
    console = Console()
    console.print(table if rows else "No run is like that.")
    for row in rows:
        if row.why:
            console.print(escape(f"{row.folder}: {row.why}"), soft_wrap=True)
    console.print(f"{len(rows)} runs, {sum(row.bytes for row in rows) / 1e6:,.1f} MB")


def tag(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    tags: Annotated[list[str] | None, typer.Argument(help="Tags to give it.")] = None,
    remove: Annotated[list[str] | None, typer.Option(help="A tag to take away. May be given again.")] = None,
) -> None:
    """Give a run tags, take some away, or show them."""
    from widestream.runs.shelf import change_tags, read_tags

    now = change_tags(run, tags or [], remove or []) if tags or remove else read_tags(run)
    print(" ".join(now) or "no tags")


def remove(
    runs: Annotated[list[Path], typer.Argument(help="Run folders.")],
    checkpoints: Annotated[
        bool, typer.Option("--checkpoints", help="Remove all checkpoints but the newest, and nothing else.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Remove runs for good. One that a process is training in stays, and then so do the others."""
    import sys

    from widestream.errors import UserError
    from widestream.runs.shelf import disk_bytes, remove_runs, require_removable

    for run in runs:
        require_removable(run)
    if not yes:
        if not sys.stdin.isatty():
            raise UserError("Nobody can be asked here; give --yes to remove without asking.")
        size = sum(map(disk_bytes, runs)) / 1e6
        what = "all checkpoints but the newest of" if checkpoints else "for good"
        typer.confirm(f"Remove {what} {len(runs)} runs ({size:,.1f} MB)?", abort=True)
    print(f"{remove_runs(runs, checkpoints) / 1e6:,.1f} MB freed")
