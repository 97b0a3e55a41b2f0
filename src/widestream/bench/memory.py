"""Measure what the backward pass needs: bytes that autograd keeps, of the stream and in all, and a step's peak."""

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from widestream.bench.models import PLAIN, Candidate, ModelSettings, Sizes, build_measured, list_candidates
from widestream.bench.plots import Panel, lines
from widestream.bench.record import Outputs, make_record
from widestream.bench.step import by_key_dim, own_step
from widestream.errors import UserError
from widestream.machine import autocast, memory_bytes
from widestream.model.decoder import Decoder

MIB = 2**20
_START = "import sys; sys.path[:] = sys.argv[1:]; from widestream.bench.memory import serve; serve()"


@dataclass(frozen=True, kw_only=True, slots=True)
class MemorySettings:
    """What is measured."""

    models: ModelSettings = field(
        default_factory=lambda: ModelSettings(key_dims=(16, 32, 64, 128, 256, 512), sizes=Sizes(context=512))
    )
    """The models."""
    peak: bool = True
    """Also run a full step of each in a process of its own, for its peak memory."""


@dataclass(frozen=True, slots=True)
class Kept:
    """Bytes kept for the backward pass; parameters are not counted, every storage is counted once."""

    stream: int
    """By exchanges: what autograd saves in a forward pass outside embedding and blocks."""
    blocks: int
    """By embedding and blocks, beside what the stream has kept already."""
    head: int
    """By head and cross-entropy."""

    @property
    def model(self) -> int:
        """In all."""
        return self.stream + self.blocks + self.head


def bench_memory(settings: MemorySettings, outputs: Outputs) -> dict[str, Any]:
    """Measure all models, write what is asked for, and return the record.

    Its `saved_bytes` and `peak_bytes` are by model; each peak is of a fresh process that takes two steps.

    Raises:
        UserError: settings that cannot be used, nowhere to write, or too little memory for a step.
    """
    outputs.check()
    candidates = list_candidates(settings.models)
    device, precision = settings.models.resolve()
    # Peaks first: they are measured in processes of their own, and this one is still small.
    peaks = {item.name: _peak_of(item, settings.models, precision) for item in candidates} if settings.peak else {}
    saved = {}
    for candidate in candidates:
        kept = saved_bytes(build_measured(candidate.config, settings.models, device), settings.models.sizes, precision)
        saved[candidate.name] = {**asdict(kept), "model": kept.model}
    record = make_record(
        "memory", settings, device,
        precision=precision,
        key_dims={candidate.name: candidate.key_dim for candidate in candidates},
        saved_bytes=saved,
        peak_bytes=peaks,
    )  # fmt: skip
    outputs.write(record, _panels(record, candidates))
    return record


def saved_bytes(model: Decoder, sizes: Sizes, precision: str) -> Kept:
    """What autograd keeps of one training batch of random tokens.

    A stream that keeps a live state of its own, outside autograd, shows in the peak memory and not here.
    """
    counts, device = {"stream": 0, "blocks": 0, "head": 0}, model.head_weight().device
    counted = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    alive = []  # a storage that was freed could give its address to the next one
    place = ["head"]

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in counted:
            counted.add(storage.data_ptr())
            alive.append(storage)
            counts[place[-1]] += storage.nbytes()
        return tensor

    tokens = torch.zeros(sizes.batch_size, sizes.context, dtype=torch.int64, device=device)
    places = {model: "stream", model.embedding: "blocks", **dict.fromkeys(model.blocks, "blocks")}
    with (
        _noting(places, place),
        autocast(device, precision),
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
    ):
        loss = model.loss(tokens, tokens)
    assert loss.total.requires_grad  # alive until here, and with it everything kept
    return Kept(**counts)


@contextlib.contextmanager
def _noting(places: dict[torch.nn.Module, str], place: list[str]) -> Iterator[None]:
    """Keep on top of `place` the name of the innermost module that computes."""
    handles = []
    for module, name in places.items():
        handles.append(module.register_forward_pre_hook(lambda *_, name=name: place.append(name)))
        handles.append(module.register_forward_hook(lambda *_: [place.pop(), None][1]))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _peak_of(candidate: Candidate, settings: ModelSettings, precision: str) -> int:
    """Most memory that a process takes which makes nothing but two steps."""
    alone = {"streams": [candidate.kind], "key_dims": [candidate.key_dim] if candidate.key_dim else [1]}
    asked = json.dumps({**asdict(settings), **alone, "precision": precision})
    command = [sys.executable, "-c", _START, *map(str, sys.path)]
    process = subprocess.run(command, input=asked, stdout=subprocess.PIPE, text=True, check=False)
    if process.returncode:
        why = (
            "was killed, most likely for want of memory" if process.returncode < 0 else "failed, its error stands above"
        )
        raise UserError(f"The step of {candidate.name} {why}: measure smaller sizes, or leave peaks out by --no-peak.")
    return int(process.stdout)


def serve() -> None:
    """What a process of its own does: read settings of one model, take two steps, print its peak memory."""
    asked = json.load(sys.stdin)
    lists = {name: tuple(asked[name]) for name in ("streams", "key_dims")}
    settings = ModelSettings(**{**asked, **lists, "sizes": Sizes(**asked["sizes"])})
    (candidate,) = list_candidates(settings)
    device, precision = settings.resolve()
    step = own_step(build_measured(candidate.config, settings, device), precision)
    generator = torch.Generator().manual_seed(0)
    for _ in range(2):  # the second has gradients, moments and kernels in place
        shape = (settings.sizes.batch_size, settings.sizes.context + 1)
        ids = torch.randint(settings.sizes.vocab_size, shape, generator=generator).to(device)
        step(ids[:, :-1].contiguous(), ids[:, 1:].contiguous())
    print(memory_bytes(device))


def _panels(record: dict[str, Any], candidates: list[Candidate]) -> list[Panel]:
    """Saved bytes of the stream and of the model, and peak memory, against D_k."""
    saved, plain = record["saved_bytes"], next((item.name for item in candidates if item.kind == PLAIN), None)
    figures = {
        "kept by the stream for the backward pass (MiB)": {name: own["stream"] for name, own in saved.items()},
        "kept by the whole model (MiB)": {name: own["model"] for name, own in saved.items()},
        "peak memory of a training step (MiB)": record["peak_bytes"],
    }
    panels: list[Panel] = []
    for label, values in figures.items():
        if values:
            mib = {name: value / MIB for name, value in values.items()}
            level = None if plain is None else (plain, mib[plain])
            panels += lines(f"{label} against the key dim D_k", label, by_key_dim(candidates, mib), level)
    return panels
