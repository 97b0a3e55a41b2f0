"""`widestream sample`."""

from pathlib import Path
from typing import Annotated, Literal

import typer


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
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ... Default: where the run was trained.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Continue a prompt with a run's newest checkpoint."""
    import json
    from dataclasses import asdict

    from widestream.generate.sampling import SamplingConfig
    from widestream.runs.sample import sample_run

    config = SamplingConfig(max_new_tokens=max_new_tokens, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
    drawn = sample_run(run, prompt, config, device=device, use_cache=cache, precision=precision, compiled=compiled)
    row = {**asdict(drawn), **asdict(config)}
    print(json.dumps(row, ensure_ascii=False) if as_json else drawn.prompt + drawn.text)
