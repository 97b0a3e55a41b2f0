"""Files of a run folder that were altered, or are no files: each is named, none is waited for, no figure is taken."""

import json
import os

import pytest

from memory import memory_of_at_most
from tiny_runs import RECIPE
from widestream.errors import UserError
from widestream.recipe import from_dict
from widestream.runs.checkpoint import complete
from widestream.runs.folder import read_config, read_done, read_info
from widestream.runs.metrics import MetricsWriter, require_idle
from widestream.runs.rows import WRITTEN, metrics_rows, written_at
from widestream.runs.write import write_config, write_done, write_info


@pytest.mark.parametrize("name", ["config.yaml", "run.json", "metrics.jsonl"])
@pytest.mark.parametrize("kind", ["folder", "pipe", "loop"])
def test_what_is_no_file_is_named_and_not_waited_for(tmp_path, name, kind):
    begin_run(tmp_path)
    (tmp_path / name).unlink(missing_ok=True)
    make = {"folder": os.mkdir, "pipe": os.mkfifo, "loop": lambda path: path.symlink_to(path.name)}
    make[kind](tmp_path / name)
    readers = {
        "config.yaml": [read_config],
        "run.json": [read_info],
        "metrics.jsonl": [require_idle, lambda run: MetricsWriter(run, 0), lambda run: list(metrics_rows(run))],
    }
    for reads in readers[name]:
        with pytest.raises(UserError, match=f"{name} is damaged"):
            reads(tmp_path)


def test_a_row_that_does_not_end_is_not_read_into_memory(tmp_path):
    with (tmp_path / "metrics.jsonl").open("wb") as file:
        file.write(b'{"kind": "train", "step": 1}\n')
        file.truncate(1 << 28)
    with memory_of_at_most(1 << 27), pytest.raises(UserError, match="longer than 16 MB"):
        list(metrics_rows(tmp_path))


@pytest.mark.parametrize(("name", "read"), [("config.yaml", read_config), ("run.json", read_info)])
def test_a_file_larger_than_any_is_not_read_into_memory(tmp_path, name, read):
    begin_run(tmp_path)
    os.truncate(tmp_path / name, 1 << 28)
    with memory_of_at_most(1 << 27), pytest.raises(UserError, match=f"{name} is damaged"):
        read(tmp_path)


def test_a_config_that_multiplies_itself_is_refused(tmp_path):
    begin_run(tmp_path)
    rows = [f"a{n + 1}: &a{n + 1} {{<<: [{', '.join([f'*a{n}'] * 9)}]}}\n" for n in range(9)]
    (tmp_path / "config.yaml").write_text("a0: &a0 {b: 1}\n" + "".join(rows))
    with pytest.raises(UserError, match=r"config.yaml is damaged"):
        read_config(tmp_path)


def test_a_config_comes_back_with_the_types_it_was_written_with(tmp_path):
    begin_run(tmp_path)
    optimizer = read_config(tmp_path)["optimizer"]
    assert (type(optimizer["lr"]), type(read_config(tmp_path)["train"]["steps"])) == (float, int)


def begin_run(folder):
    """A run that begins, with files as training writes them."""
    write_info(folder, {"data": {"seed": 0}, "summary": {"flops": {10: 1.5, 9: 2}}})
    write_config(folder, from_dict(RECIPE))
    write_done(folder, {"step": 4, "heldout": {"loss": 1.25}})


def test_every_altered_figure_is_noticed(tmp_path):
    begin_run(tmp_path)
    assert read_config(tmp_path)["train"]["batch_size"] == 2
    assert read_info(tmp_path) == {"data": {"seed": 0}, "summary": {"flops": {"10": 1.5, "9": 2}}}
    assert read_done(tmp_path) == {"step": 4, "heldout": {"loss": 1.25}}
    for name, old, new in (("config.yaml", "batch_size: 2", "batch_size: 3"), ("run.json", "1.5", "1.6")):
        path = tmp_path / name
        path.write_text(path.read_text().replace(old, new))
        with pytest.raises(UserError, match=f"{name} is damaged"):
            {"config.yaml": read_config, "run.json": read_info}[name](tmp_path)
    done = tmp_path / "done.json"
    done.write_text(done.read_text().replace("1.25", "1.35"))
    assert read_done(tmp_path) is None


@pytest.mark.parametrize(
    "harm", [{"bytes": "9"}, {"bytes": None}, {"bytes": 1.5}, {"bytes": -5}, {"bytes": True}, {"sha256": 7}]
)
def test_a_checkpoint_that_tells_nonsense_of_the_rows_tells_nothing(tmp_path, harm):
    (tmp_path / WRITTEN).write_text(json.dumps({"bytes": 9, "sha256": "0"} | harm))
    assert written_at(tmp_path) is None


def test_a_pipe_in_a_checkpoint_is_not_waited_for(tmp_path, caplog):
    folder = tmp_path / "checkpoints" / "step_00000002"
    folder.mkdir(parents=True)
    for name in (WRITTEN, "complete.json"):
        os.mkfifo(folder / name)
    assert written_at(folder) is None
    assert complete(tmp_path) == []
    assert "complete.json is damaged" in caplog.text
