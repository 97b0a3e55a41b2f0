"""`widestream import hf`, `convert` and `widen`: weights that change hands."""

from pathlib import Path
from typing import Annotated

import typer

To = Annotated[Path, typer.Option("--to", help="Run folder to make; must not exist.")]
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
