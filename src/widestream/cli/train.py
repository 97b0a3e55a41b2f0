"""`widestream train`, `eval` and `sample`: one run."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from widestream.cli.as_json import Json, print_json

Device = Annotated[str | None, typer.Option(help="cpu, cuda, ... Default: where the run was trained.")]


def train(
    recipe: Annotated[str, typer.Argument(help="A recipe's YAML file, or the name of a shipped one (paper/rmt-134m).")],
    changes: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY.SUB=VALUE]...", help="Changes to the recipe.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder. Default: runs/NAME, with the recipe's name.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Move an existing run folder aside and begin anew.")] = False,
    extend: Annotated[
        bool, typer.Option("--extend", help="Go on for longer, also where the schedule would have been another one.")
    ] = False,
) -> None:
    """Train a model, or go on with an interrupted run.

    The same command under torchrun trains on many processes.
    """
    from widestream.recipe import load_recipe

    config = load_recipe(recipe, changes or [])

    from widestream.train.loop import train as run_training

    run_training(config, out or Path("runs") / config.name, resume=not fresh, extend=extend)


def evaluate(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    data: Annotated[Path | None, typer.Option(help="Another prepared folder. Default: the run's own.")] = None,
    tasks: Annotated[
        str | None, typer.Option(help="Instead: tasks of lm-evaluation-harness, with commas between them.")
    ] = None,
    task_data: Annotated[
        Path | None, typer.Option(help="Folder with TASK.jsonl files (data tasks). Default: the hub.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Only so many items of a task.")] = None,
    shots: Annotated[int | None, typer.Option(help="Examples in front of an item. Default: the task's.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows of a forward pass, of tasks.")] = 16,
    precision: Annotated[Literal["float32", "bf16"], typer.Option(help="Of tasks.")] = "float32",
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Held-out loss, perplexity and bits per byte of a run's newest checkpoint, or how it does on tasks."""
    from dataclasses import asdict

    if tasks is not None:
        from widestream.cli.tasks import evaluate_tasks

        names = [name.strip() for name in tasks.split(",") if name.strip()]
        how = {"limit": limit, "shots": shots, "batch_size": batch_size, "device": device, "precision": precision}
        evaluate_tasks(run, names, task_data, as_json, how)
        return

    from widestream.train.evaluate import evaluate_run

    step, heldout = evaluate_run(run, data, device)
    if as_json:
        print_json({"step": step, **asdict(heldout)})
        return
    print(f"{run} at step {step:,}, on {heldout.target_tokens:,} held-out tokens")
    print(f"  loss           {heldout.loss:.4f} nats per token")
    print(f"  perplexity     {heldout.perplexity:.2f}")
    bits = heldout.bits_per_byte
    print(f"  bits per byte  {'none: the tokens do not tell all of the text' if bits is None else f'{bits:.4f}'}")


def sample(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    prompt: Annotated[str, typer.Option(help="Text to continue; empty: the beginning of a document.")] = "",
    max_new_tokens: Annotated[int, typer.Option("--tokens", help="Tokens to add at most.")] = 100,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token each time.")] = 0.8,
    top_k: Annotated[int | None, typer.Option(help="Draw from the k likeliest tokens only. Default: all.")] = None,
    top_p: Annotated[
        float | None, typer.Option(help="Draw from the likeliest tokens that reach p. Default: all.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the draws.")] = 0,
    cache: Annotated[bool, typer.Option(help="Keep keys and values of earlier tokens; the text is the same.")] = True,
    precision: Annotated[
        Literal["float32", "bf16"],
        typer.Option(help="bf16 halves what is read per token; its rounding may change tokens."),
    ] = "float32",
    compiled: Annotated[
        bool,
        typer.Option("--compile", help="Compile the step: worth it from some hundred tokens on; the text is the same."),
    ] = False,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Continue a prompt with a run's newest checkpoint."""
    from dataclasses import asdict

    from widestream.generate.sampling import SamplingConfig
    from widestream.runs.sample import sample_run

    config = SamplingConfig(max_new_tokens=max_new_tokens, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
    drawn = sample_run(run, prompt, config, device=device, use_cache=cache, precision=precision, compiled=compiled)
    row = {**asdict(drawn), **asdict(config)}
    if as_json:
        print_json(row)
    else:
        print(drawn.prompt + drawn.text)
    if drawn.ended == "context":
        typer.echo(f"Ended after {drawn.num_tokens} of {max_new_tokens} tokens: the model's context is full.", err=True)
