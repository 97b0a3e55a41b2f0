"""`widestream plan`: layouts that fit, the quickest first; requests that make no sense are a sentence."""

import json
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from tiny_runs import tiny_config
from widestream.cli.app import build_app
from widestream.cli.plan_tables import settings
from widestream.errors import UserError
from widestream.plan import DEVICES, Device, advise, find_kind, forecast
from widestream.plan.forecast import asked_for
from widestream.recipe.train import ParallelConfig
from widestream.train.layout import Layout

ROOMY = find_kind("h100")


@pytest.fixture(scope="module")
def config(data):
    model = {"num_layers": 4, "mlp_dim": 512, "vocab_size": 300}
    return tiny_config(data, model=model, train={"batch_size": 16, "precision": "bf16"})


def small(config, share: float) -> Device:
    """A device that holds this share of what the run takes unshared, before what a step keeps."""
    alone = forecast(config, Layout(8, 1), ROOMY, "bf16").memory
    return replace(ROOMY, memory=share * alone.total / 0.92)


def test_all_layouts_are_there_where_all_fit(config):
    found = advise(config, 8, ROOMY, "bf16")
    assert {(one.layout.replicate, one.layout.shard) for one in found} == {(8, 1), (4, 2), (2, 4), (1, 8)}
    assert all(one.fits for one in found)
    assert [sum(one.step_s) for one in found] == sorted(sum(one.step_s) for one in found)


def test_how_many_share_a_window_is_the_recipes_to_say(config):
    shared = replace(config, train=replace(config.train, parallel=ParallelConfig(context=2)))
    found = advise(shared, 8, ROOMY, "bf16")
    assert {(one.layout.replicate, one.layout.shard) for one in found} == {(4, 1), (2, 2), (1, 4)}
    assert {one.layout.context for one in found} == {2}
    assert "train.parallel.context=2" in settings(found[0])
    # Half of the tokens beside as many windows, of which a process has twice as many.
    of_one, of_two = (
        forecast(one, Layout(4, 1, context=one.train.parallel.context), ROOMY, "bf16")
        for one in (
            replace(config, train=replace(config.train, batch_size=4)),
            replace(shared, train=replace(shared.train, batch_size=4)),
        )
    )
    assert of_two.memory.kept < of_one.memory.kept
    assert of_two.computing_s == pytest.approx(of_one.computing_s / 2)


def test_what_does_not_fit_is_left_out(config):
    found = advise(config, 8, small(config, 0.7), "bf16")
    assert found
    assert (8, 1) not in {(one.layout.replicate, one.layout.shard) for one in found}
    assert not advise(config, 8, small(config, 0.01), "bf16")


def test_a_step_takes_longer_on_slower_devices_and_links(config):
    layout = Layout(1, 16, "bf16")
    quick, slow = (
        forecast(replace(config, train=replace(config.train, batch_size=16)), layout, device, "bf16")
        for device in (ROOMY, replace(ROOMY, flops=ROOMY.flops / 3, between=ROOMY.between / 5))
    )
    assert slow.computing_s == pytest.approx(3 * quick.computing_s)
    assert slow.sending_s["between"] == pytest.approx(5 * quick.sending_s["between"])
    assert quick.step_s[0] <= quick.step_s[1]


def test_a_group_inside_a_machine_uses_its_link(config):
    inside, between = (
        forecast(config, Layout(2, 8, "bf16"), replace(ROOMY, per_machine=number), "bf16").sent for number in (8, 4)
    )
    assert {sent.what: sent.link for sent in inside} == {
        "weights": "inside", "gradients within groups": "inside", "gradients between groups": "between",
    }  # fmt: skip
    assert {sent.link for sent in between} == {"between"}


@pytest.mark.parametrize(("layout", "link"), [
    (Layout(8, 3), "between"),  # the third of eight groups has two processes of one machine, one of the next
    (Layout(2, 3), "inside"), (Layout(4, 4), "inside"), (Layout(1, 8), "inside"), (Layout(1, 12), "between"),
], ids=str)  # fmt: skip
def test_groups_that_do_not_fill_a_machine_lie_on_two(config, layout, link):
    config = replace(config, train=replace(config.train, batch_size=layout.replicate * layout.shard))
    sent = forecast(config, layout, replace(ROOMY, per_machine=8), "bf16").sent
    assert {one.what: one.link for one in sent}["weights"] == link


def test_checkpointing_keeps_less_and_computes_more(config):
    plain, again = (
        forecast(replace(config, train=replace(config.train, activation_checkpointing=asked)), Layout(), ROOMY, "bf16")
        for asked in (False, True)
    )
    assert again.memory.kept < plain.memory.kept
    assert again.computing_s == pytest.approx(plain.computing_s * 4 / 3)


def test_the_layout_that_is_asked_for(config):
    set_so = replace(config, train=replace(config.train, parallel=ParallelConfig(shard=4)))
    assert asked_for(set_so, 8, ROOMY, "bf16").layout == Layout(2, 4, "bf16")
    shared = replace(config, train=replace(config.train, parallel=ParallelConfig(context=2)))
    assert asked_for(shared, 8, ROOMY, "bf16").layout == Layout(4, 1, "bf16", context=2)
    with pytest.raises(UserError, match=r"train\.parallel is shard 4, and there are 6 processes"):
        asked_for(set_so, 6, ROOMY, "bf16")


@pytest.mark.parametrize(
    ("name", "given", "words"),
    [
        ("h1000", {}, "There is no device h1000; give a100, h100, h200, b200, mi300x, here."),
        ("h100", {"memory": 0.0}, "A device's memory is above 0, not 0."),
        ("h100", {"between": -1.0}, "A device's between is above 0, not -1."),
        ("h100", {"flops": float("nan")}, "A device's flops is above 0, not nan."),
    ],
)
def test_devices_that_are_none(name, given, words):
    with pytest.raises(UserError, match=words):
        find_kind(name, **given)


def test_here_is_measured():
    here = find_kind("here", inside=1e9)
    assert here.memory != DEVICES["h100"].memory
    assert 1e8 < here.flops < 1e17
    assert here.inside == 1e9


def run(*arguments: str):
    return CliRunner().invoke(build_app(), ["plan", *arguments])


def test_the_command(data):
    result = run("demo/transformer", "train.steps=5", "--devices", "2", "--memory", "40")
    assert result.exit_code == 0, result.output
    for words in ("moments", "kept for the backward pass", "replicate 1 x shard 2", "Take train.parallel.replicate="):
        assert words in result.stdout
    found = json.loads(run("demo/transformer", "train.steps=5", "--devices", "2", "--json").stdout)
    assert found["device"]["name"] == "h100"
    sizes = found["as_set"]["memory_bytes"]
    assert sizes["total"] == sum(size for name, size in sizes.items() if name != "total")
    assert len(found["advised"]) == 2


def test_nothing_fits_is_said():
    result = run("demo/transformer", "--devices", "2", "--memory", "0.01")
    assert result.exit_code == 0
    assert "No layout fits" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--devices", "3"], "train.batch_size=8 cannot be split evenly over 3 processes"),
        (["--mfu", "0"], "--mfu is the share of a device's peak"),
        (["--mfu", "1.5"], "--mfu is the share of a device's peak"),
        (["--device", "tpu"], "There is no device tpu"),
    ],
)
def test_refused(arguments, words):
    result = run("demo/transformer", *arguments)
    assert isinstance(result.exception, UserError)
    assert words in str(result.exception)
