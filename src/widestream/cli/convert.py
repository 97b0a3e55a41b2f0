"""`widestream import hf`, `convert` and `widen`: weights that change hands."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from widestream.convert.stream import Converted

To = Annotated[Path, typer.Option("--to", help="Run folder to make; must not exist.")]
Step = Annotated[int | None, typer.Option(help="Optimizer step of the checkpoint. Default: the newest.")]
Run = Annotated[Path, typer.Argument(help="Run folder.")]


def import_hf(
    path: Annotated[Path, typer.Argument(help="Folder with config.json and safetensors, or a .gguf file.")],
    to: To,
    tokenizer: Annotated[
        str | None,
        typer.Option(metavar="byte|gpt2|PATH", help="Another tokenizer than the folder's tokenizer.json."),
    ] = None,
    boundary: Annotated[
        str | None, typer.Option(help="Token in front of documents. Default: what the tokenizer puts in front.")
    ] = None,
) -> None:
    """Take over a pretrained model of Hugging Face's transformers: GPT-2, Llama, Mistral, Qwen, OLMo 2, Gemma, SmolLM.

    Files are read from the disk; nothing is fetched, no code of the folder is run, no pickle opened.
    """
    from widestream.convert.hf import import_hf as run_import

    found = run_import(path, to, tokenizer, boundary)
    print(f"{to}: {found.family}, {found.parameters:,} parameters in float32 (the file has {found.read_as})")
    if found.tokenizer is None:
        print("  no tokenizer.json was found: the run can be neither sampled nor trained on; see --tokenizer")
        return
    own = "" if found.boundary is None else f" --boundary '{found.boundary}'"
    name = found.tokenizer.kind if found.tokenizer.kind in ("byte", "gpt2") else to
    print(f"  text for it:     widestream data prepare PATH... --out DATA --tokenizer {name}{own}")
    print(f"  training it on:  widestream train {to} train.init_from={to} data.path=DATA --out OUT")


def convert(
    run: Run,
    stream: Annotated[str, typer.Option(metavar="KIND[:SETTING=VALUE,...]", help="A stream that starts plain.")],
    to: To,
    seed: Annotated[int, typer.Option(help="Seed of what the stream starts at random.")] = 0,
    step: Step = None,
) -> None:
    """Give a run with the plain stream another one; what it computes stays."""
    from widestream.convert.stream import convert_run

    _say(run, to, convert_run(run, stream, to, seed, step))


def widen(
    run: Run,
    key_dim: Annotated[int, typer.Option(help="D_k of the new stream; a plain one has as many as it has heads.")],
    to: To,
    std: Annotated[float, typer.Option(help="Standard deviation of the new retrieval keys.")] = 0.02,
    seed: Annotated[int, typer.Option(help="Seed of the new retrieval keys.")] = 0,
    step: Step = None,
) -> None:
    """Give a run a wider stream (vector, matrix or matrix_dense -> larger D_k); what it computes stays."""
    from widestream.convert.widen import widen_run

    _say(run, to, widen_run(run, key_dim, to, std, seed, step))


def _say(run: Path, to: Path, made: "Converted") -> None:
    before, after = made.parameters
    print(f"{to}: {run} with a {made.config.stream.kind} stream, {before:,} -> {after:,} parameters")
    print(f"  largest difference of logits: {made.off:.1e} of the largest")
    print(f"  training it on:  widestream train {to} train.init_from={to} --out OUT")
