"""Records are read as they were written, plain and compressed."""

import lzma
import os
from pathlib import Path

import pytest

from widestream.bench.record import Outputs
from widestream.errors import UserError
from widestream.files import LARGEST_JSON, read_json, write_json


@pytest.mark.parametrize("name", ["a.json", "a.json.xz"])
def test_a_record_comes_back(tmp_path, name):
    record = {"command": "widestream bench step", "seconds": [1.5, 2.0], "word": "µs"}
    write_json(tmp_path / name, record)
    assert read_json(tmp_path / name) == record
    assert ((tmp_path / name).read_bytes()[:1] == b"{") == (name == "a.json")


def test_a_missing_or_damaged_record_is_told(tmp_path):
    for name, content in (("a.json", b'{"a"'), ("b.json.xz", b"{}"), ("c.json", b"\xff")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=f"{name} cannot be read"):
            read_json(tmp_path / name)
    os.mkfifo(tmp_path / "pipe.json")
    with pytest.raises(UserError, match=r"pipe.json is no file"):  # and is not waited for
        read_json(tmp_path / "pipe.json")
    (tmp_path / "loop.json").symlink_to("loop.json")
    with pytest.raises(UserError, match=r"loop.json is no file"):
        read_json(tmp_path / "loop.json")
    with pytest.raises(UserError, match="does not exist"):
        read_json(tmp_path / "d.json")


@pytest.mark.parametrize("name", ["a.json", "a.json.xz"])
def test_a_record_larger_than_any_is_not_read_into_memory(tmp_path, name):
    with (lzma.open if name.endswith(".xz") else open)(tmp_path / name, "wb") as file:
        file.write(bytes(LARGEST_JSON + 1))
    with pytest.raises(UserError, match="holds more than 64 MB"):
        read_json(tmp_path / name)


def test_no_number_that_json_lacks_is_written(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"loss": float("nan")})
    assert not (tmp_path / "a.json").exists()


def test_plots_lie_beside_a_record_whatever_its_ending():
    for name in ("x/step.json", "x/step.json.xz"):
        assert Outputs(Path(name)).stem == Path("x/step")
