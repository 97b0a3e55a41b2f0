"""C++ kernels for CPUs: compiled at first use for the machine at hand and kept in a cache folder.

The folder is $WIDESTREAM_CACHE, else $XDG_CACHE_HOME/widestream, else ~/.cache/widestream. A library's name holds the
hash of everything that it depends on (sources, flags, compiler and its version, processor), so a folder may be shared
by machines and versions. It is written aside and renamed, so processes may build at once.
"""

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from widestream.errors import UserError
from widestream.files import cache_folder

# Results must not depend on assumptions about NaN and infinity: no -ffast-math.
FLAGS = ("-std=c++17", "-O3", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math", "-fno-exceptions")
X86, ARM = ("-march=native", "-mprefer-vector-width=512"), ("-mcpu=native",)
NATIVE = {"x86_64": X86, "amd64": X86, "aarch64": ARM, "arm64": ARM}
BUILD_SECONDS = 120


def address(x: Tensor | None) -> int | None:
    """Where a tensor's numbers lie; None of none.

    Raises:
        UserError: it is no plain tensor (a part that processes share out, a tensor that stands for another), and a
            kernel would read something else at its address.
    """
    if x is None:
        return None
    if type(x) not in (Tensor, nn.Parameter):
        raise UserError(
            f"A kernel was given a {type(x).__name__} where it reads numbers at an address; hand it a plain tensor "
            "(of a DTensor full_tensor() or to_local()), or take what torch computes (train.kernels=reference, "
            "train.attention=sdpa)."
        )
    return x.data_ptr()


class View(ctypes.Structure):
    """Where a tensor is, and its first three strides. Mirrors View in tiles.h and Heads in attention.cpp."""

    _fields_ = (("data", ctypes.c_void_p), *((name, ctypes.c_int64) for name in ("first", "second", "third", "bf16")))

    @classmethod
    def of(cls, x: Tensor | None) -> "View":
        """Of a tensor; of none, zeros."""
        return cls() if x is None else cls(address(x), *x.stride()[:3], x.dtype == torch.bfloat16)


class BuildError(Exception):
    """A kernel cannot be had. The message is one sentence that says why."""


def load(name: str, *sources: Path) -> ctypes.CDLL:
    """The library built of `sources`, of which the first is compiled and the others are included by it.

    Raises:
        BuildError: no compiler, or it fails, or the cache folder cannot be used.
    """
    compiler = _compiler()
    flags = [*FLAGS, *NATIVE.get(platform.machine().lower(), ()), "-shared", "-fPIC"]
    version = _run([*compiler, "--version"])
    try:
        facts = [*(source.read_bytes() for source in sources), shlex.join([*compiler, *flags, version]).encode()]
        library = cache_folder() / f"{name}-{hashlib.sha256(b'|'.join([*facts, _processor()])).hexdigest()[:16]}.so"
        if not library.exists():
            library.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=library.parent) as aside:
                built = Path(aside) / library.name
                _run([*compiler, *flags, str(sources[0]), "-o", str(built)])
                built.replace(library)
        return ctypes.CDLL(str(library))
    except (OSError, RuntimeError) as error:
        raise BuildError(
            f"The folder of compiled kernels cannot be used ({error}); set WIDESTREAM_CACHE to another."
        ) from error


class Kernel:
    """A kernel of this folder, NAME.cpp, compiled when it is first asked for.

    Args:
        name: of the source and of the library; the entry is `widestream_NAME`, which takes a pointer to a `problem`.
        problem: all that the kernel is told; its last field is torch's runner of threads.
    """

    def __init__(self, name: str, problem: type[ctypes.Structure]):
        self.name, self.problem = name, problem

    @functools.cached_property
    def entry(self) -> tuple[Callable[..., None], int] | str:
        """The compiled function and torch's runner of threads, or one sentence that says why they cannot be had."""
        folder = Path(__file__).parent
        try:
            library = load(self.name, *(folder / name for name in (f"{self.name}.cpp", "threads.h", "tiles.h")))
            parallel = _parallel_runner()
        except BuildError as error:
            return str(error)
        function = getattr(library, f"widestream_{self.name}")
        function.argtypes, function.restype = (ctypes.POINTER(self.problem),), None
        return function, parallel

    @property
    def missing(self) -> str | None:
        """None where the kernel can be called, else why not. Compiles if need be (seconds, once)."""
        return self.entry if isinstance(self.entry, str) else None

    def __call__(self, *values: Any) -> None:
        """Carry out the problem of these values, to which the runner of threads is added."""
        assert not isinstance(self.entry, str), self.entry
        function, parallel = self.entry
        function(ctypes.byref(self.problem(*values, parallel)))


def _parallel_runner() -> int:
    """Address of GOMP_parallel in the OpenMP runtime that torch itself uses: one pool of threads, not two that fight.

    Raises:
        BuildError: torch has no such runtime.
    """
    suffix = ".dylib" if platform.system() == "Darwin" else ".so"
    try:
        # A search through this library goes on through those that it was linked with.
        torch_cpu = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / f"libtorch_cpu{suffix}"))
        address = ctypes.cast(torch_cpu.GOMP_parallel, ctypes.c_void_p).value
    except (OSError, AttributeError) as error:
        raise BuildError("torch's OpenMP threads cannot be reached.") from error
    assert address is not None
    return address


def _compiler() -> list[str]:
    """$CXX, or the first there is."""
    chosen = shlex.split(os.environ.get("CXX", ""))
    if chosen:
        return chosen
    for name in ("c++", "g++", "clang++"):
        if shutil.which(name):
            return [name]
    raise BuildError("There is no C++ compiler (c++, g++, clang++ or $CXX).")


def require_compiler(asked: str, device: torch.device) -> None:
    """Make sure that torch.compile finds the compiler that it calls at run time.

    Args:
        asked: the setting that wants something compiled, as a message shall name it.
        device: what is compiled for: on a CPU torch writes C++; for a GPU Triton calls a C compiler.

    Raises:
        UserError: there is none, or it does not run.
    """
    if device.type == "cpu":
        from torch._inductor.cpp_builder import get_cpp_compiler
        from torch._inductor.exc import InvalidCxxCompiler

        with contextlib.suppress(InvalidCxxCompiler):
            get_cpp_compiler()
            return
        lacking = "a C++ compiler, and there is none that runs (g++ or $CXX)"
    else:
        if os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang"):
            return
        lacking = "a C compiler, and there is none (gcc, clang or $CC)"
    raise UserError(f"{asked} needs {lacking}; install one, or leave {asked} out.")


def _run(command: list[str]) -> str:
    """Standard output of a command that succeeds."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=BUILD_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(f"The C++ compiler cannot be run: {error}.") from error
    if done.returncode != 0:
        complaint = next((line for line in done.stderr.splitlines() if "error" in line.lower()), "it says nothing")
        raise BuildError(f"The C++ compiler fails ({command[0]}, exit code {done.returncode}: {complaint}).")
    return done.stdout


@functools.cache
def _processor() -> bytes:
    """What the compiler's idea of a native machine depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor().encode()
    return "|".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))})).encode()
