"""Building of C++ kernels: what is kept, machines that cannot build, processes that build at once.

The compiler is a script that copies a library, so nothing here depends on there being one.
"""

import _ctypes
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from torch._inductor import cpp_builder

from models import tiny
from widestream.errors import UserError
from widestream.generate.decoding import Decoding
from widestream.kernels import compiled
from widestream.model.build import build_model
from widestream.model.depth import plan_depth

COMPILER = f"""\
    #!{sys.executable}
    import pathlib, shutil, sys, time
    here = pathlib.Path(__file__).parent
    if "--version" in sys.argv:
        print((here / "version").read_text())
    else:
        time.sleep(0.3)
        with (here / "calls").open("a") as log:
            log.write("x")
        text = pathlib.Path(sys.argv[-3]).read_text()
        if "mistake" in text:
            sys.exit("kernel.cpp:1:1: error: a mistake")
        shutil.copy(sys.argv[-3] if "rubbish" in text else {_ctypes.__file__!r}, sys.argv[-1])
"""


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A source, beside a compiler and the folder that the environment now points to."""
    compiler = tmp_path / "compiler"
    compiler.write_text(textwrap.dedent(COMPILER))
    compiler.chmod(0o755)
    (tmp_path / "version").write_text("1")
    monkeypatch.setenv("CXX", f"{compiler} -some-flag")
    monkeypatch.setenv("WIDESTREAM_CACHE", str(tmp_path / "cache"))
    source = tmp_path / "kernel.cpp"
    source.write_text("first")
    return source


def calls(source: Path) -> int:
    log = source.parent / "calls"
    return len(log.read_text()) if log.exists() else 0


def test_compiled_once_and_anew_when_anything_changes(kernel: Path) -> None:
    header = kernel.parent / "kernel.h"
    header.write_text("first")
    for _ in range(2):
        assert compiled.load("kernel", kernel, header).PyInit__ctypes
        assert calls(kernel) == 1
    for number, path in enumerate((kernel, header, kernel.parent / "version"), start=2):
        path.write_text("second")
        compiled.load("kernel", kernel, header)
        assert calls(kernel) == number
    assert len(list((kernel.parent / "cache").iterdir())) == 4


def test_folder_without_own_setting(kernel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WIDESTREAM_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(kernel.parent / "xdg"))
    compiled.load("kernel", kernel)
    assert len(list((kernel.parent / "xdg" / "widestream").iterdir())) == 1


def test_processes_that_build_at_once_all_succeed(kernel: Path) -> None:
    code = "import sys, pathlib as p; from widestream.kernels.compiled import load; load('kernel', p.Path(sys.argv[1]))"
    runs = [subprocess.Popen([sys.executable, "-c", code, str(kernel)]) for _ in range(3)]
    assert [run.wait() for run in runs] == [0, 0, 0]
    assert [path.suffix for path in (kernel.parent / "cache").iterdir()] == [".so"]


def test_a_failing_compiler_is_quoted_and_leaves_nothing_behind(kernel: Path) -> None:
    kernel.write_text("mistake")
    with pytest.raises(compiled.BuildError, match=r"exit code 1: kernel\.cpp:1:1: error: a mistake\)\.$"):
        compiled.load("kernel", kernel)
    assert list((kernel.parent / "cache").iterdir()) == []


@pytest.mark.parametrize("compiler", ["/bin/false", "/nowhere/c++"])
def test_a_compiler_that_does_nothing_or_is_not_there(
    kernel: Path, monkeypatch: pytest.MonkeyPatch, compiler: str
) -> None:
    monkeypatch.setenv("CXX", compiler)
    with pytest.raises(compiled.BuildError, match=f"compiler .*{compiler}.*\\.$"):
        compiled.load("kernel", kernel)


def test_no_compiler(kernel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", str(kernel.parent))
    with pytest.raises(compiled.BuildError, match="no C\\+\\+ compiler"):
        compiled.load("kernel", kernel)


def test_a_folder_that_cannot_be_used(kernel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WIDESTREAM_CACHE", str(kernel / "below-a-file"))
    with pytest.raises(compiled.BuildError, match="set WIDESTREAM_CACHE to another"):
        compiled.load("kernel", kernel)


def test_a_library_that_cannot_be_loaded(kernel: Path) -> None:
    kernel.write_text("rubbish")
    with pytest.raises(compiled.BuildError, match="set WIDESTREAM_CACHE to another"):
        compiled.load("kernel", kernel)


def without_compiler(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setenv("PATH", str(folder))
    for name in ("CXX", "CC"):
        monkeypatch.delenv(name, raising=False)
    cpp_builder.cpp_compiler_search.cache_clear()


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_compiling_without_a_compiler_is_refused_in_the_words_of_the_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    without_compiler(monkeypatch, tmp_path)
    with pytest.raises(UserError, match=r"^train\.compile needs a C.* compiler, .* leave train\.compile out\.$"):
        compiled.require_compiler("train.compile", torch.device(device))


def test_a_run_that_compiles_is_refused_before_it_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_compiler(monkeypatch, tmp_path)
    with pytest.raises(UserError, match=r"^train\.compile needs"):
        plan_depth(tiny("vector"), torch.device("cpu"), compiled=True)
    with pytest.raises(UserError, match=r"^--compile needs"):
        Decoding(build_model(tiny("vector")).eval(), 1, 6, compiled=True)
