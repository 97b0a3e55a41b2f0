"""Every way in which processes share a run trains as one process does."""

import pytest

from processes import train_quickly
from ranks import rows, train_on, weights
from tiny_runs import tiny_config

STEPS = 20


def trained(data, folder, size, optimizer="adamw", model=None, **train):
    """Rows and last weights of a run."""
    settings = {"steps": STEPS, "save_every": STEPS, "eval_every": STEPS, "batch_size": 8, **train}
    optimizer = {"kind": optimizer, "grad_clip": 0.5, "eps": 1e-6}
    config = tiny_config(data, model=model or {}, train=settings, optimizer=optimizer)
    if size == 1:
        train_quickly(config, folder)
    else:
        train_on(size, config, folder)
    return rows(folder), weights(folder, STEPS)


def apart(these, others):
    """How far weights are from others, the worst of all, relative to their size."""
    assert these.keys() == others.keys()
    return max(float((others[name] - value).norm() / value.norm()) for name, value in these.items())


def require_same_training(data, tmp_path, size, **settings):
    """Losses and norms are one process's; weights differ as they do there when it sums in another order."""
    layout = settings.pop("parallel")
    one, alone = trained(data, tmp_path / "one", 1, **settings)
    _, reordered = trained(data, tmp_path / "reordered", 1, **settings, micro_batch_size=1)
    several, found = trained(data, tmp_path / "several", size, **settings, parallel=layout, micro_batch_size=1)
    assert len(one) == len(several) == STEPS + 1
    for a, b in zip(one, several, strict=True):
        assert (a["kind"], a["step"], a["tokens"]) == (b["kind"], b["step"], b["tokens"])
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-5)
        if a["kind"] == "train":
            assert b["grad_norm"] == pytest.approx(a["grad_norm"], rel=1e-4)
    assert apart(alone, found) <= 3 * apart(alone, reordered)


DRILL = pytest.mark.drill


@pytest.mark.parametrize(
    ("optimizer", "layout"),
    [
        ("adamw", {"replicate": 2, "shard": 2}),
        pytest.param("muon", {"replicate": 2, "shard": 2}, marks=DRILL),
        pytest.param("adamw", {"shard": 4}, marks=DRILL),
        pytest.param("muon", {"shard": 4}, marks=DRILL),
        pytest.param("adamw", {"replicate": 4}, marks=DRILL),
        pytest.param("muon", {"replicate": 4}, marks=DRILL),
        pytest.param("adamw", {"context": 2, "shard": 2}, marks=DRILL),
        pytest.param("adamw", {"tensor": 2, "shard": 2}, marks=DRILL),
        pytest.param("adamw", {"tensor": 2, "context": 2}, marks=DRILL),
    ],
    ids=str,
)
def test_four_processes(data, tmp_path, optimizer, layout):
    model = {"stream": {"kind": "vector"}, "num_heads": 4} if "tensor" in layout else {}
    require_same_training(data, tmp_path, 4, optimizer=optimizer, parallel=layout, model=model)
