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
    against: Annotated[
        Path | None,
        typer.Option(
            "--against", metavar="OTHER", help="Set another run's wiring beside this one's, and their difference."
        ),
    ] = None,
    over_training: Annotated[
        bool, typer.Option("--over-training", help="Sum up the wiring at every checkpoint of the run.")
    ] = False,
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Write the HTML page here.")] = None,
    step: Annotated[int | None, typer.Option("--step", help="Of the checkpoint. Default: the newest.")] = None,
    device: Annotated[str | None, typer.Option("--device", help="Default: where the run was trained.")] = None,
    as_json: Json = False,
) -> None:
    """Show who wrote what the next token is read from: attribution, wiring, attention, the logit lens."""
    from widestream.experiments.lens import section
    from widestream.experiments.lens.against import set_beside
    from widestream.experiments.lens.over_training import follow
    from widestream.experiments.lens.prompt import inspect_prompt
    from widestream.report.terminal import print_tables

    found = inspect_prompt(run, prompt, target=target, step=step, device=device)
    beside = None if against is None else set_beside(found, against, device=device)
    training = follow(found, device) if over_training else None
    shown = section.Shown(found=found, beside=beside, training=training)
    if out is not None:
        given = {"--target": target, "--against": against, "--step": step}
        options = [word for name, value in given.items() if value is not None for word in (name, str(value))]
        options += ["--over-training"] if over_training else []
        command = ["widestream", "lens", str(run), "--prompt", prompt, *options]
        section.write_lens_page(shown, out, [*command, "--out", str(out)])
    if as_json:
        print_json(shown.to_dict())
        return
    for line in shown.sentences():
        typer.echo(line)
    print_tables(shown.tables())
    if out is not None:
        typer.echo(f"Page: {out}")
