"""The monitor where several processes train: all look at the same window, and training goes on as without."""

import pytest

from processes import train_quickly
from ranks import rows, train_on, weights
from tiny_runs import tiny_config


def looks(run_dir):
    return [row for row in rows(run_dir) if row["kind"] == "stream"]


def close(found):
    """Numbers and lists of them, to 1e-4."""
    return {
        name: value if isinstance(value, str | int) else pytest.approx(value, rel=1e-4) for name, value in found.items()
    }


@pytest.mark.parametrize(
    ("layout", "changes", "model"),
    [
        ({"replicate": 2}, {}, {}),
        ({"shard": 2}, {"micro_batch_size": 1}, {}),
        ({"shard": 2}, {"activation_checkpointing": True}, {"stream": {"kind": "mhc"}, "tied_head": True}),
    ],
    ids=str,
)
def test_two_processes_see_what_one_sees_and_train_as_without(data, tmp_path, layout, changes, model):
    settings = {"steps": 4, "eval_every": 4, **changes}
    watched = settings | {"watch_every": 2}
    optimizer = {"grad_clip": 0.5}
    train_quickly(tiny_config(data, model=model, train=watched, optimizer=optimizer), tmp_path / "one")
    for name, train in (("two", watched), ("unwatched", settings)):
        config = tiny_config(data, model=model, train=train | {"parallel": layout}, optimizer=optimizer)
        train_on(2, config, tmp_path / name)
    one, two = looks(tmp_path / "one"), looks(tmp_path / "two")
    assert [row["step"] for row in two] == [2, 4]
    assert [row["state_rms"][0] > 0 for row in two] == [True, True]
    for a, b in zip(one, two, strict=True):
        assert b == close(a)
    plain = [
        {k: v for k, v in row.items() if k != "clock"} for row in rows(tmp_path / "two") if row["kind"] != "stream"
    ]
    assert plain == [{k: v for k, v in row.items() if k != "clock"} for row in rows(tmp_path / "unwatched")]
    with_, without = (weights(tmp_path / name, 4) for name in ("two", "unwatched"))
    assert all((value == without[name]).all() for name, value in with_.items())
