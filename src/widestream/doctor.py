"""What is installed, what this machine can do, and what to install for more: `widestream doctor`."""

import importlib.metadata
import os
import platform
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from widestream.data.gpt2 import find_merges
from widestream.errors import UserError
from widestream.files import cache_folder
from widestream.kernels import attention_cpu, exchange_cpu, gate_cpu, gelu_cpu, norm_cpu
from widestream.kernels.compiled import require_compiler
from widestream.machine import choose_precision, describe_machine, find_device, matmul_peak
from widestream.version import __version__

EXTRAS = {
    "data": {"pyarrow": "parquet files", "zstandard": "zst files"},
    "hub": {"datasets": "data sets of the Hugging Face hub"},
    "remote": {"fsspec": "data behind URLs"},
    "hf": {"transformers": "models of Hugging Face: export, attach", "gguf": "import of GGUF files"},
    "eval": {"lm_eval": "eval --tasks", "datasets": "their items", "pyarrow": "data tasks"},
    "track": {"tensorboard": "train.tensorboard", "wandb": "train.wandb", "trackio": "train.trackio"},
    "serve": {"starlette": "widestream serve", "uvicorn": "widestream serve"},
    "tune": {"optuna": "widestream tune"},
    "cluster": {"submitit": "study run --on"},
    "pictures": {"vl_convert": "figures as files"},
}
"""What each extra brings, by the module's name, and what it is for."""
NAMES = {"vl_convert": "vl-convert-python"}
"""Of packages that are not called like their modules."""
SECONDS = 0.1
"""How long products are timed at each precision."""


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    part: str
    """versions, machine, kernels, extras or files."""
    name: str
    """What was looked at."""
    found: str
    """What was found, in words."""
    fine: bool = True
    """Whether nothing is missing."""
    remedy: str = ""
    """What to do about it, where something is."""


def examine() -> list[Finding]:
    """Look at everything. Compiles the kernels if need be, which takes seconds, once."""
    return [*_versions(), *_machine(), *_kernels(), *_extras(), *_files()]


def _versions() -> list[Finding]:
    packages = ("numpy", "scipy", "tokenizers", "safetensors")
    return [
        Finding("versions", "widestream", f"{__version__}, in {Path(__file__).parent}"),
        Finding("versions", "Python", f"{platform.python_version()}, {platform.system()} on {platform.machine()}"),
        Finding("versions", "torch", f"{torch.__version__}, {_build()}"),
        *(Finding("versions", name, importlib.metadata.version(name)) for name in packages),
    ]


def _build() -> str:
    if torch.version.cuda:
        return f"built for CUDA {torch.version.cuda}"
    return f"built for ROCm {torch.version.hip}" if torch.version.hip else "built for CPUs"


def _machine() -> list[Finding]:
    device = find_device("auto")
    about = describe_machine(device)
    speeds = {name: matmul_peak(device, name, SECONDS) / 1e9 for name in ("float32", "bf16")}
    chosen = choose_precision("auto", device)
    threads = torch.get_num_threads()
    cpu = f"{about['cpu']}, {about['cores']} cores, {threads} thread{'s' if threads != 1 else ''} by torch's choice"
    gpu = about["gpu"] or ("none that torch can use" if torch.version.cuda or torch.version.hip else "none looked for")
    products = ", ".join(f"{name} {speed:,.0f}" for name, speed in speeds.items())
    return [
        Finding("machine", "processor", cpu),
        Finding("machine", "memory", f"{about['memory_gb']} GB"),
        Finding("machine", "GPU", str(gpu)),
        Finding("machine", "device", f"{device} is what `device: auto` takes"),
        Finding("machine", "matrix products", f"GFLOP/s: {products}; `precision: auto` takes {chosen}"),
    ]


def _kernels() -> list[Finding]:
    kernels = (exchange_cpu, attention_cpu, norm_cpu, gate_cpu, gelu_cpu)
    findings = []
    for kernel in (module.KERNEL for module in kernels):
        why = kernel.missing
        remedy = "" if why is None else "torch's operations compute in its place, more slowly; install g++ or set CXX"
        findings.append(Finding("kernels", f"{kernel.name} (C++)", why or "compiled", why is None, remedy))
    triton = _version("triton")
    findings.append(Finding("kernels", "triton", triton or "not there: only GPUs need it"))
    compiler = _complaint(lambda: require_compiler("torch.compile", find_device("auto")))
    remedy = "" if compiler is None else "only train.compile, sample --compile and bench --compile need it"
    findings.append(Finding("kernels", "torch.compile", compiler or "has a compiler", compiler is None, remedy))
    return findings


def _extras() -> list[Finding]:
    findings = []
    for extra, modules in EXTRAS.items():
        for module, purpose in modules.items():
            version = _version(NAMES.get(module, module))
            remedy = "" if version else f"pip install 'widestream[{extra}]'"
            name = f"{NAMES.get(module, module)} ({purpose})"
            findings.append(Finding("extras", name, version or "not there", version is not None, remedy))
    return findings


def _files() -> list[Finding]:
    cache = cache_folder()
    free = shutil.disk_usage(Path.cwd()).free / 1e9
    writable = os.access(next(path for path in (cache, *cache.parents) if path.exists()), os.W_OK)
    missing = _complaint(find_merges)
    where = "kept on disk" if missing is None else "not there: only --tokenizer gpt2 needs it"
    offline = os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0")
    return [
        Finding(
            "files", "compiled kernels", f"{cache}", writable, "" if writable else "set WIDESTREAM_CACHE to a folder"
        ),
        Finding("files", "room here", f"{free:,.1f} GB in {Path.cwd()}"),
        Finding("files", "GPT-2's vocabulary", where, missing is None, missing or ""),
        Finding(
            "files", "Hugging Face hub", "offline (HF_HUB_OFFLINE)" if offline else "used where something asks for it"
        ),
    ]


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _complaint(look: Callable[[], object]) -> str | None:
    """What a look says that something is missing; None: nothing is."""
    try:
        look()
    except UserError as error:
        return str(error)
    return None
