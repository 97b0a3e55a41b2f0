"""`widestream train` and `widestream eval`."""

from pathlib import Path
from typing import Annotated

import typer


def train(
    recipe: Annotated[str, typer.Argument(help="A recipe's YAML file, or the name of a shipped one (paper/rmt-134m).")],
    changes: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY.SUB=VALUE]...", help="Changes to the recipe.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder. Default: runs/NAME, with the recipe's name.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Move an existing run folder aside and begin anew.")] = False,
) -> None:
    """Train a model, or go on with an interrupted run.

    The same command under torchrun trains on many processes.
    """
    from widestream.recipe import load_recipe

    config = load_recipe(recipe, changes or [])

    from widestream.train.loop import train as run_training

    run_training(config, out or Path("runs") / config.name, resume=not fresh)


def evaluate(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    data: Annotated[Path | None, typer.Option(help="Another prepared folder. Default: the run's own.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ... Default: where the run was trained.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Held-out loss, perplexity and bits per byte of a run's newest checkpoint."""
    import json
    from dataclasses import asdict

    from widestream.train.evaluate import evaluate_run

    step, heldout = evaluate_run(run, data, device)
    if as_json:
        print(json.dumps({"step": step, **asdict(heldout)}))
        return
    print(f"{run} at step {step:,}, on {heldout.target_tokens:,} held-out tokens")
    print(f"  loss           {heldout.loss:.4f} nats per token")
    print(f"  perplexity     {heldout.perplexity:.2f}")
    print(f"  bits per byte  {heldout.bits_per_byte:.4f}")
