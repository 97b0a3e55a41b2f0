"""Moment propagation in training: what is measured at the checkpoints of a run."""

from dataclasses import replace

import pytest
from typer.testing import CliRunner

from tiny_runs import tiny_config, write_data
from widestream.cli.app import build_app
from widestream.errors import UserError
from widestream.experiments.moments.charts import moments_charts
from widestream.experiments.moments.section import moments_tables
from widestream.experiments.moments.training import RunSettings, measure_run
from widestream.files import read_json
from widestream.train.loop import train


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("moments")
    data = write_data(folder / "data")
    for stream in ("matrix", "vector"):
        sections = {"model": {"num_layers": 2}, "train": {"save_every": 3, "keep": 5, "eval_every": 6}}
        config = replace(tiny_config(data, stream, **sections), name=stream)
        train(config, folder / stream)
    return folder


def test_a_run_is_measured_at_its_start_and_at_every_checkpoint(runs):
    found = measure_run(runs / "matrix", RunSettings(windows=2))
    assert [step["step"] for step in found["steps"]] == [0, 3, 6]
    assert [(update["from"], update["to"]) for update in found["updates"]] == [(0, 3), (3, 6)]
    assert all(0 < value < 1 for update in found["updates"] for value in update["relative"].values())
    first, last = found["steps"][0], found["steps"][-1]
    assert last["loss"] < first["loss"]
    assert len(first["ranks"]["seen"]) == len(found["readers"]) == 5
    assert all(1 <= rank <= 4 for rank in first["ranks"]["matrix"])
    write = first["maps"]["stream.write_1"]
    assert write[1] / write[0] == pytest.approx(4 / 2)


def test_the_command_measures_runs(runs, tmp_path):
    chosen = [word for stream in ("matrix", "vector") for word in ("--run", str(runs / stream))]
    out = tmp_path / "training.json.xz"
    result = CliRunner().invoke(build_app(), ["study", "moments", *chosen, "--windows", "2", "--json", str(out)])
    assert result.exit_code == 0, result.output
    assert "one seed tells nothing at step 6" in result.output
    record = read_json(out)
    assert record["command"] == f"widestream study moments {' '.join(chosen)} --windows=2"
    assert [run["stream"] for run in record["training"]] == ["matrix", "vector"]
    assert (tmp_path / "training-light.svg").read_text().count(">training steps<") == len(moments_charts(record))
    assert [table.title for table in moments_tables(record)] == [
        "Moments during training",
        "Ratios of Table 1 with the weights' own second moment",
        "Relative change of parameters between checkpoints",
    ]


def test_a_run_without_a_checkpoint_is_refused(runs, tmp_path):
    (tmp_path / "config.yaml").write_text((runs / "vector" / "config.yaml").read_text())
    with pytest.raises(UserError, match="no checkpoint yet"):
        measure_run(tmp_path, RunSettings())
