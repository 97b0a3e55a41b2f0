"""`widestream bench`: measure the training step, memory, decoding, kernels and data on this machine."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from widestream.cli.as_json import STDOUT, print_json


def _option(kind: Any, help: str, *names: str, metavar: str | None = None) -> Any:
    return Annotated[kind, typer.Option(*names, help=help, metavar=metavar)]


OPTIONS = {
    "streams": _option(str, "Kinds of stream, or all; the first is what others are compared with.", metavar="KIND,..."),
    "key_dims": _option(str, "Key dims of the streams that have one.", metavar="D_K,..."),
    "layers": _option(int, "Layers."),
    "heads": _option(int, "Heads."),
    "head_dim": _option(int, "Width of a head."),
    "vocab": _option(int, "Size of the vocabulary."),
    "context": _option(int, "Tokens of a window."),
    "batch": _option(int, "Windows of a batch."),
    "precision": _option(Literal["auto", "bf16", "float32"], "auto: bf16 where the machine multiplies it faster."),
    "device": _option(str, "auto, cpu, cuda, ..."),
    "threads": _option(int | None, "CPU threads. Default: torch's choice."),
    "compile": _option(bool, "Compile the models.", "--compile"),
    "stream_memory": _option(Literal["auto", "states", "writes"], "As train.stream_memory in a recipe."),
    "kernels": _option(Literal["auto", "reference", "fused"], "What computes exchanges: train.kernels."),
    "state_precision": _option(Literal["float32", "bf16"], "As train.state_precision in a recipe."),
    "attention": _option(Literal["auto", "sdpa", "flex", "fused"], "As train.attention in a recipe."),
    "rounds": _option(int, "Timed rounds; in each, all take turns."),
    "warmup": _option(int, "Rounds before the timed ones."),
    "json": _option(Path | None, "Write the record here, and its plots beside it; - prints it and nothing else."),
    "plot": _option(Path | None, "Write the plots STEM-light.svg and STEM-dark.svg.", metavar="STEM"),
}
"""What measurements are asked for, by name."""

MODELS = {"streams": "vector,matrix", "key_dims": "32", "layers": 12, "heads": 12, "head_dim": 64, "vocab": 50257}
MACHINE = {"precision": "auto", "device": "auto", "threads": None}
DEPTH = {"stream_memory": "auto", "kernels": "auto", "state_precision": "float32", "attention": "auto"}
"""What several are asked for, with the defaults."""


def _takes(**asked: Any) -> Callable[[Callable[..., Any]], Callable[..., None]]:
    """Make a command of a function that gets options by name, and `outputs` for `json` and `plot`; print its record.

    Args:
        asked: defaults by name, in the order of the help; what is not in `OPTIONS` with its option before the default.
    """
    parameters = []
    for name, default in {**asked, "json": None, "plot": None}.items():
        kind, default = default if isinstance(default, tuple) else (OPTIONS[name], default)
        parameters.append(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind))

    def decorate(function: Callable[..., Any]) -> Callable[..., None]:
        def command(json: Path | None, plot: Path | None, **values: Any) -> None:
            from widestream.bench.record import Outputs
            from widestream.bench.tables import print_record

            found = function(outputs=Outputs(None if json == STDOUT else json, plot), **values)
            if json == STDOUT:
                print_json(found)
            else:
                print_record(found)

        command.__doc__ = function.__doc__
        vars(command)["__signature__"] = inspect.Signature(parameters)
        return command

    return decorate


@_takes(
    **MODELS,
    context=256,
    batch=4,
    **MACHINE,
    compile=False,
    **DEPTH,
    rounds=9,
    warmup=2,
    together=(_option(int, "Models held in memory at a time, the first one among them."), 6),
)
def step(outputs: Any, rounds: int, warmup: int, together: int, **models: Any) -> Any:
    """Time a training step: forward, backward, clipping, AdamW.

    For example:

        widestream bench step --key-dims 16,32,64,128,256,512 --json step.json

        widestream bench step --streams all --layers 4 --json streams.json
    """
    from widestream.bench.step import StepSettings, bench_step

    settings = StepSettings(models=_models(**models), rounds=rounds, warmup=warmup, together=together)
    return bench_step(settings, outputs)


@_takes(
    **MODELS | {"key_dims": "16,32,64,128,256,512"},
    context=512,
    batch=4,
    **MACHINE,
    **DEPTH,
    peak=(_option(bool, "Also take two steps of each in a process of its own."), True),
)
def memory(outputs: Any, peak: bool, **models: Any) -> Any:
    """Measure what is kept for the backward pass, and a step's peak memory.

    For example:

        widestream bench memory --key-dims 32,256 --json memory.json
    """
    from widestream.bench.memory import MemorySettings, bench_memory

    return bench_memory(MemorySettings(models=_models(**models), peak=peak), outputs)


@_takes(
    **MODELS,
    context=(_option(int, "Longest sequence of the models."), 1024),
    batch=(_option(str, "Sequences side by side.", metavar="B,..."), "1,8"),
    prompt=(_option(int, "Tokens of the prompt."), 128),
    tokens=(_option(int, "Tokens that are timed; models take turns at each."), 64),
    **MACHINE,
    compile=(_option(bool, "Time compiled steps too, beside the eager ones.", "--compile"), False),
)
def decode(outputs: Any, batch: str, prompt: int, tokens: int, **models: Any) -> Any:
    """Time decoding with the KV cache, in tokens a second.

    For example:

        widestream bench decode --compile --json decode.json
    """
    from widestream.bench.decode import DecodeSettings, bench_decode

    measured = _models(batch=1, **models)
    settings = DecodeSettings(models=measured, batch_sizes=_counts("--batch", batch), prompt=prompt, tokens=tokens)
    return bench_decode(settings, outputs)


@_takes(
    kernels=(
        _option(str, "Implementations of the exchange; what cannot run here is told.", metavar="NAME,..."),
        "reference,cpu,triton",
    ),
    key_dims="16,32,64,128,256,512",
    tokens=(_option(int, "Tokens of a state."), 1024),
    heads=12,
    head_dim=64,
    norm=(_option(Literal["layernorm", "rmsnorm"], "Norm in front of the read."), "layernorm"),
    state_precision=(_option(Literal["float32", "bf16"], "Of the state."), "float32"),
    device="auto",
    threads=None,
    rounds=15,
    warmup=3,
)
def kernels(outputs: Any, kernels: str, key_dims: str, tokens: int, heads: int, head_dim: int, **others: Any) -> Any:
    """Time the exchange of a matrix stream against the bandwidth of a copy.

    For example:

        widestream bench kernels --key-dims 32,128 --json kernels.json
    """
    from widestream.bench.kernels import KernelSettings, bench_kernels

    lists = {"kernels": _names(kernels), "key_dims": _counts("--key-dims", key_dims)}
    settings = KernelSettings(**lists, num_tokens=tokens, num_heads=heads, value_dim=head_dim, **others)
    return bench_kernels(settings, outputs)


@_takes(
    paths=(
        Annotated[
            list[str] | None,
            typer.Argument(metavar="[PATH]...", help="Text as for `data prepare`. Default: bundled:prose."),
        ],
        None,
    ),
    tokenizers=(_option(str, "byte, gpt2 or a tokenizer.json each.", metavar="NAME,..."), "byte"),
    workers=(_option(str, "Numbers of threads that tokenize.", metavar="N,..."), "1"),
    context=512,
    batch=8,
    batches=(_option(int, "Batches that are timed together."), 50),
    rounds=3,
    warmup=1,
)
def data(
    outputs: Any, paths: list[str] | None, tokenizers: str, workers: str, context: int, batch: int, **others: Any
) -> Any:
    """Time the preparation of text and the loader, in tokens a second.

    For example:

        widestream bench data my_texts/ --tokenizers byte,bpe.json --workers 1,2 --json data.json
    """
    from widestream.bench.data import DataSettings, bench_data

    lists = {"tokenizers": _names(tokenizers), "workers": _counts("--workers", workers)}
    text = tuple(paths or ["bundled:prose"])
    settings = DataSettings(paths=text, **lists, sequence_length=context, batch_size=batch, **others)
    return bench_data(settings, outputs)


def _models(
    *, streams: str, key_dims: str, layers: int, heads: int, head_dim: int, vocab: int, context: int, batch: int,
    **options: Any,
) -> Any:  # fmt: skip
    from widestream.bench.models import ModelSettings, Sizes

    sizes = Sizes(
        num_layers=layers, num_heads=heads, head_dim=head_dim, vocab_size=vocab, context=context, batch_size=batch
    )
    return ModelSettings(sizes=sizes, streams=_names(streams), key_dims=_counts("--key-dims", key_dims), **options)


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _counts(option: str, text: str) -> tuple[int, ...]:
    from widestream.errors import UserError

    try:
        return tuple(int(name) for name in _names(text))
    except ValueError:
        raise UserError(
            f"{option} is {text}; it takes whole numbers with commas between them, such as 16,32."
        ) from None
