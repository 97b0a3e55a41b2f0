"""`widestream bench`: measure the training step, memory, decoding, kernels and data on this machine."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

Streams = Annotated[
    str, typer.Option(metavar="KIND,...", help="Kinds of stream, or all; the first is what others are compared with.")
]
KeyDims = Annotated[str, typer.Option(metavar="D_K,...", help="Key dims of the streams that have one.")]
Layers = Annotated[int, typer.Option(help="Layers.")]
Heads = Annotated[int, typer.Option(help="Heads.")]
HeadDim = Annotated[int, typer.Option(help="Width of a head.")]
Vocab = Annotated[int, typer.Option(help="Size of the vocabulary.")]
Context = Annotated[int, typer.Option(help="Tokens of a window.")]
Batch = Annotated[int, typer.Option(help="Windows of a batch.")]
Precision = Annotated[
    Literal["auto", "bf16", "float32"], typer.Option(help="auto: bf16 where the machine multiplies it faster.")
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, ...")]
Threads = Annotated[int | None, typer.Option(help="CPU threads. Default: torch's choice.")]
Compile = Annotated[bool, typer.Option("--compile", help="Compile the models.")]
Memory = Annotated[
    Literal["auto", "states", "writes"], typer.Option("--stream-memory", help="As train.stream_memory in a recipe.")
]
Kernels = Annotated[
    Literal["auto", "reference", "fused"], typer.Option("--kernels", help="What computes exchanges: train.kernels.")
]
State = Annotated[
    Literal["float32", "bf16"], typer.Option("--state-precision", help="As train.state_precision in a recipe.")
]
Attention = Annotated[
    Literal["auto", "sdpa", "flex", "fused"], typer.Option("--attention", help="As train.attention in a recipe.")
]
Rounds = Annotated[int, typer.Option(help="Timed rounds; in each, all take turns.")]
Warmup = Annotated[int, typer.Option(help="Rounds before the timed ones.")]
Json = Annotated[Path | None, typer.Option("--json", help="Write the record here, and its plots beside it.")]
Plot = Annotated[Path | None, typer.Option(metavar="STEM", help="Write the plots STEM-light.svg and STEM-dark.svg.")]


def step(
    streams: Streams = "vector,matrix",
    key_dims: KeyDims = "32",
    layers: Layers = 12,
    heads: Heads = 12,
    head_dim: HeadDim = 64,
    vocab: Vocab = 50257,
    context: Context = 256,
    batch: Batch = 4,
    precision: Precision = "auto",
    device: Device = "auto",
    threads: Threads = None,
    compiled: Compile = False,
    stream_memory: Memory = "auto",
    kernels: Kernels = "auto",
    state_precision: State = "float32",
    attention: Attention = "auto",
    rounds: Rounds = 9,
    warmup: Warmup = 2,
    together: Annotated[int, typer.Option(help="Models held in memory at a time, the first one among them.")] = 6,
    json: Json = None,
    plot: Plot = None,
) -> None:
    """Time a training step: forward, backward, clipping, AdamW.

    For example:

        widestream bench step --key-dims 16,32,64,128,256,512 --json step.json

        widestream bench step --streams all --layers 4 --json streams.json
    """
    from widestream.bench.step import StepSettings, bench_step
    from widestream.bench.tables import print_step

    sizes = _sizes(layers, heads, head_dim, vocab, context, batch)
    models = _models(
        sizes, streams, key_dims, device, precision, threads,
        compile=compiled, stream_memory=stream_memory, kernels=kernels, state_precision=state_precision,
        attention=attention,
    )  # fmt: skip
    settings = StepSettings(models=models, rounds=rounds, warmup=warmup, together=together)
    print_step(bench_step(settings, _outputs(json, plot)))


def memory(
    streams: Streams = "vector,matrix",
    key_dims: KeyDims = "16,32,64,128,256,512",
    layers: Layers = 12,
    heads: Heads = 12,
    head_dim: HeadDim = 64,
    vocab: Vocab = 50257,
    context: Context = 512,
    batch: Batch = 4,
    precision: Precision = "auto",
    device: Device = "auto",
    threads: Threads = None,
    stream_memory: Memory = "auto",
    kernels: Kernels = "auto",
    state_precision: State = "float32",
    attention: Attention = "auto",
    peak: Annotated[bool, typer.Option(help="Also take two steps of each in a process of its own.")] = True,
    json: Json = None,
    plot: Plot = None,
) -> None:
    """Measure what is kept for the backward pass, and a step's peak memory.

    For example:

        widestream bench memory --key-dims 32,256 --json memory.json
    """
    from widestream.bench.memory import MemorySettings, bench_memory
    from widestream.bench.tables import print_memory

    sizes = _sizes(layers, heads, head_dim, vocab, context, batch)
    models = _models(
        sizes, streams, key_dims, device, precision, threads,
        stream_memory=stream_memory, kernels=kernels, state_precision=state_precision,
        attention=attention,
    )  # fmt: skip
    print_memory(bench_memory(MemorySettings(models=models, peak=peak), _outputs(json, plot)))


def decode(
    streams: Streams = "vector,matrix",
    key_dims: KeyDims = "32",
    layers: Layers = 12,
    heads: Heads = 12,
    head_dim: HeadDim = 64,
    vocab: Vocab = 50257,
    context: Annotated[int, typer.Option(help="Longest sequence of the models.")] = 1024,
    batch: Annotated[str, typer.Option(metavar="B,...", help="Sequences side by side.")] = "1,8",
    prompt: Annotated[int, typer.Option(help="Tokens of the prompt.")] = 128,
    tokens: Annotated[int, typer.Option(help="Tokens that are timed; models take turns at each.")] = 64,
    precision: Precision = "auto",
    device: Device = "auto",
    threads: Threads = None,
    compiled: Annotated[
        bool, typer.Option("--compile", help="Time compiled steps too, beside the eager ones.")
    ] = False,
    json: Json = None,
    plot: Plot = None,
) -> None:
    """Time decoding with the KV cache, in tokens a second.

    For example:

        widestream bench decode --compile --json decode.json
    """
    from widestream.bench.decode import DecodeSettings, bench_decode
    from widestream.bench.tables import print_decode

    sizes = _sizes(layers, heads, head_dim, vocab, context, 1)
    models = _models(sizes, streams, key_dims, device, precision, threads, compile=compiled)
    settings = DecodeSettings(models=models, batch_sizes=_counts("--batch", batch), prompt=prompt, tokens=tokens)
    print_decode(bench_decode(settings, _outputs(json, plot)))


def kernels(
    kernels: Annotated[
        str, typer.Option(metavar="NAME,...", help="Implementations of the exchange; what cannot run here is told.")
    ] = "reference,cpu,triton",
    key_dims: KeyDims = "16,32,64,128,256,512",
    tokens: Annotated[int, typer.Option(help="Tokens of a state.")] = 1024,
    heads: Heads = 12,
    head_dim: HeadDim = 64,
    norm: Annotated[Literal["layernorm", "rmsnorm"], typer.Option(help="Norm in front of the read.")] = "layernorm",
    state_precision: Annotated[Literal["float32", "bf16"], typer.Option(help="Of the state.")] = "float32",
    device: Device = "auto",
    threads: Threads = None,
    rounds: Rounds = 15,
    warmup: Warmup = 3,
    json: Json = None,
    plot: Plot = None,
) -> None:
    """Time the exchange of a matrix stream against the bandwidth of a copy.

    For example:

        widestream bench kernels --key-dims 32,128 --json kernels.json
    """
    from widestream.bench.kernels import KernelSettings, bench_kernels
    from widestream.bench.tables import print_kernels

    settings = KernelSettings(
        kernels=_names(kernels),
        key_dims=_counts("--key-dims", key_dims),
        num_tokens=tokens,
        num_heads=heads,
        value_dim=head_dim,
        norm=norm,
        state_precision=state_precision,
        device=device,
        threads=threads,
        rounds=rounds,
        warmup=warmup,
    )
    print_kernels(bench_kernels(settings, _outputs(json, plot)))


def data(
    paths: Annotated[
        list[str] | None,
        typer.Argument(metavar="[PATH]...", help="Text as for `data prepare`. Default: bundled:prose."),
    ] = None,
    tokenizers: Annotated[str, typer.Option(metavar="NAME,...", help="byte, gpt2 or a tokenizer.json each.")] = "byte",
    workers: Annotated[str, typer.Option(metavar="N,...", help="Numbers of processes that tokenize.")] = "1",
    context: Context = 512,
    batch: Batch = 8,
    batches: Annotated[int, typer.Option(help="Batches that are timed together.")] = 50,
    rounds: Rounds = 3,
    warmup: Warmup = 1,
    json: Json = None,
    plot: Plot = None,
) -> None:
    """Time the preparation of text and the loader, in tokens a second.

    For example:

        widestream bench data my_texts/ --tokenizers byte,bpe.json --workers 1,2 --json data.json
    """
    from widestream.bench.data import DataSettings, bench_data
    from widestream.bench.tables import print_data

    settings = DataSettings(
        paths=tuple(paths or ["bundled:prose"]),
        tokenizers=_names(tokenizers),
        workers=_counts("--workers", workers),
        sequence_length=context,
        batch_size=batch,
        batches=batches,
        rounds=rounds,
        warmup=warmup,
    )
    print_data(bench_data(settings, _outputs(json, plot)))


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


def _sizes(layers: int, heads: int, head_dim: int, vocab: int, context: int, batch: int) -> Any:
    from widestream.bench.models import Sizes

    return Sizes(
        num_layers=layers, num_heads=heads, head_dim=head_dim, vocab_size=vocab, context=context, batch_size=batch
    )


def _models(
    sizes: Any, streams: str, key_dims: str, device: str, precision: str, threads: int | None, **options: Any
) -> Any:
    from widestream.bench.models import ModelSettings

    return ModelSettings(
        sizes=sizes,
        streams=_names(streams),
        key_dims=_counts("--key-dims", key_dims),
        device=device,
        precision=precision,
        threads=threads,
        **options,
    )


def _outputs(json: Path | None, plot: Path | None) -> Any:
    from widestream.bench.record import Outputs

    return Outputs(json, plot)


def register(app: typer.Typer) -> None:
    """Add `widestream bench` and its measurements."""
    group = typer.Typer(no_args_is_help=True, help="Measure training step, memory, decoding, kernels and data here.")
    for command in (step, memory, decode, kernels, data):
        group.command()(command)
    app.add_typer(group, name="bench")
