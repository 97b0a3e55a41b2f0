"""`widestream export`: a run for other tools."""

from pathlib import Path
from typing import Annotated

import typer


def hf(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    folder: Annotated[Path, typer.Argument(help="Folder to write; must not be there yet.")],
    step: Annotated[
        int | None, typer.Option(help="Step of a checkpoint. Default: the newest one of a finished run.")
    ] = None,
    licence: Annotated[
        str | None, typer.Option("--license", help="Licence of the weights, for the card, as the hub names it.")
    ] = None,
    shard_size: Annotated[str, typer.Option(help="Largest size of a file of weights.")] = "5GB",
) -> None:
    """Write a folder that Hugging Face transformers loads, with or without this package.

    AutoModelForCausalLM.from_pretrained(FOLDER, trust_remote_code=True) needs torch and transformers only. A process
    that cannot import this package loads the folder first, and its logits and token ids are compared with the run's.
    """
    from widestream.hub.export import export_run

    difference = export_run(run, folder, step, licence, shard_size)
    print(f"{folder}: loaded by transformers, logits within {difference:.1e} of the run's")
