"""`widestream lens`: a trained model on a prompt."""

from pathlib import Path
from typing import Annotated

import typer

from widestream.cli.as_json import Json, print_json


def lens(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.")],
    prompt: Annotated[str, typer.Option("--prompt", metavar="TEXT", help="What the model reads.")],
    target: Annotated[
        str | None,
        typer.Option(
            "--target", metavar="TEXT", help="Attribute the logit of its first token. Default: the likeliest."
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Write the HTML page here.")] = None,
    step: Annotated[int | None, typer.Option("--step", help="Of the checkpoint. Default: the newest.")] = None,
    device: Annotated[str | None, typer.Option("--device", help="Default: where the run was trained.")] = None,
    as_json: Json = False,
) -> None:
    """Show who wrote what the next token is read from: attribution, wiring, attention, the logit lens."""
    from widestream.experiments.lens import section
    from widestream.experiments.lens.prompt import inspect_prompt
    from widestream.report.terminal import print_tables

    found = inspect_prompt(run, prompt, target=target, step=step, device=device)
    if out is not None:
        command = ["widestream", "lens", str(run), "--prompt", prompt, *(["--target", target] if target else [])]
        section.write_lens_page(found, out, [*command, "--out", str(out)])
    if as_json:
        print_json(section.to_dict(found))
        return
    for line in section.sentences(found):
        typer.echo(line)
    tables = [
        section.guess_table(found),
        section.writer_table(found),
        section.wire_table(found),
        section.site_table(found),
    ]
    print_tables([table for table in tables if table is not None])
    if out is not None:
        typer.echo(f"Page: {out}")
