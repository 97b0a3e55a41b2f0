"""What the streams of released models are at hand-worked cases, at the start, and with bad settings."""

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from models import tiny
from widestream.errors import UserError
from widestream.model.build import build_model
from widestream.model.catalog import list_streams
from widestream.recipe import load_recipe
from widestream.recipe.load import RECIPES
from widestream.streams import OWN_KINDS, stream_class
from widestream.testing import CHECKS

MODELS = {model: kind for kind in OWN_KINDS for model in stream_class(kind).models}


def states(stream, count=4, **changes):
    """The stream, and its states behind random writes, which come first."""
    built: Any = build_model(tiny(stream, norm="rmsnorm", **changes)).double().stream
    generator = torch.Generator().manual_seed(0)
    written = [torch.randn(1, 3, 32, dtype=torch.float64, generator=generator) for _ in range(count + 1)]
    state, _ = built.exchange(0, None, (written[0], None))
    seen = [state]
    for site in range(1, count + 1):
        state, _ = built.exchange(site, state, written[site])
        seen.append(state)
    return built, written, seen


def normed(x):
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()


def test_mean_is_the_sum_over_the_root_of_its_number():
    _, written, seen = states({"kind": "scaled"})
    for site, x in enumerate(seen):
        torch.testing.assert_close(x, sum(written[: site + 1]) / math.sqrt(site + 1))


def test_numbers_of_attention_and_mlps():
    numbers = {"alpha": 1.5, "beta": 0.5, "alpha_mlp": 2.0}
    _, f, seen = states({"kind": "scaled", "schedule": "layers", "carries": "normed", **numbers})
    attended = 1.5 * normed(f[0]) + 0.5 / math.sqrt(2) * f[1]
    torch.testing.assert_close(seen[1], normed(attended))
    torch.testing.assert_close(seen[2], normed(2.0 * normed(attended) + 0.5 / math.sqrt(2) * f[2]))


def test_a_preserving_gate_keeps_the_sum_of_squares():
    stream, f, seen = states({"kind": "gains", "form": "preserving"})
    torch.testing.assert_close(seen[1], math.sqrt(0.75) * f[0] + 0.5 * f[1])
    with torch.no_grad():
        stream.gain.fill_(0.6)
    beta = 1 / (1 + math.exp(-2.0))
    torch.testing.assert_close(stream.write(1, f[0], f[1]), math.sqrt(1 - beta**2) * f[0] + beta * f[1])
    with torch.no_grad():
        stream.gain.fill_(30.0)  # a floor keeps the stream's gradient alive
    torch.testing.assert_close(stream.write(1, f[0], f[1]), math.sqrt(1e-3) * f[0] + f[1])


def test_attention_over_normed_values_starts_as_their_mean():
    stream, f, seen = states({"kind": "attn_res", "values": "normed", "group_size": 2})
    assert torch.equal(stream.sums(0, seen[0])[0], f[0])
    torch.testing.assert_close(stream.sums(2, seen[2])[0], (normed(f[0]) + normed(f[1] + f[2])) / 2)
    assert stream.queries.shape == (4, 32)


def test_alternating_updates_start_with_lanes_that_move_alike():
    stream, f, seen = states({"kind": "altup", "rank": 0, "lanes": 3})
    lanes = stream.spread(f[0])
    lengths = lanes.square().mean(-1)
    torch.testing.assert_close(lengths, lengths[..., :1].expand(-1, -1, 3))
    torch.testing.assert_close(seen[2].lanes, lanes + (f[1] + f[2]).unsqueeze(-2))


def test_a_gated_residual_starts_with_equal_lanes_that_writes_tell_apart():
    _, f, seen = states({"kind": "gated_residual", "rank": 4})
    assert torch.equal(seen[0].lanes, f[0].unsqueeze(-2).expand(-1, -1, 4, -1))
    assert (seen[1].lanes.std(-2) > 0).all()


@pytest.mark.parametrize("check", ["parameter_count", "gradients", "plain_start", "depth", "saved", "reversible"])
@pytest.mark.parametrize("form", ["layer", "preserving"])
def test_contract_of_the_other_gains(form, check):
    """The contract's own tests have the two forms that hold most; of the others, what differs."""
    CHECKS[check]({"kind": "gains", "form": form}, {})


@pytest.mark.parametrize(
    ("stream", "changes", "sentence"),
    [
        ({"kind": "scaled", "beta": 0.5}, {}, "mean has numbers of its own"),
        ({"kind": "scaled", "schedule": "constant"}, {}, "use kind: vector"),
        ({"kind": "scaled", "schedule": "constant", "beta": float("nan")}, {}, "model.stream.beta is nan"),
        ({"kind": "scaled", "schedule": "layers", "alpha": 0}, {}, "model.stream.alpha is 0"),
        ({"kind": "scaled", "carries": "normed"}, {"norm_place": "after"}, "norms in front of blocks"),
        ({"kind": "gains", "temperature": 0}, {}, "model.stream.temperature is 0"),
        ({"kind": "gains", "temperature": 1.0}, {}, "does nothing with form: channel"),
        ({"kind": "gated_residual", "lanes": 1}, {}, "model.stream.lanes is 1"),
        ({"kind": "gated_residual", "rank": 0}, {}, "model.stream.rank is 0"),
        ({"kind": "altup", "lanes": 1}, {}, "model.stream.lanes is 1"),
        ({"kind": "altup", "rank": -1}, {}, "model.stream.rank is -1"),
        ({"kind": "mhc", "magnitude": 0.0}, {}, "model.stream.magnitude is 0"),
        ({"kind": "attn_res", "attention_reads": "three"}, {"attention_window": 4}, "no attention sees all tokens"),
    ],
)
def test_bad_settings_are_named(stream, changes, sentence):
    with pytest.raises(UserError) as error:
        build_model(tiny(stream, **changes))
    assert sentence in str(error.value)


@pytest.mark.parametrize("model", MODELS)
def test_a_released_models_recipe_has_its_stream(model):
    """A tiny model: how many layers a group or lanes and ranks there are is its own."""
    config = load_recipe(f"shipped/{model}")
    assert str(config.name) == f"shipped/{model}"
    assert config.model.stream.kind == MODELS[model]
    for name, value in stream_class(MODELS[model]).models[model].items():
        if name != "group_size":
            assert getattr(config.model.stream, name) == value
    build_model(config.model)


def test_recipes_page_and_listing_have_all_of_them():
    assert {path.stem for path in (RECIPES.folder / "shipped").iterdir()} == set(MODELS)
    page = Path(__file__).parents[2] / "docs/reference/shipped-streams.md"
    rows = re.findall(r"^\| `(\w+)` \| .* \| `(\{.*?\})`", page.read_text(), re.MULTILINE)
    told = {model: yaml.safe_load(settings) for model, settings in rows}
    own = {model: {"kind": kind, **stream_class(kind).models[model]} for model, kind in MODELS.items()}
    assert told == own
    listed = {
        model: {"kind": row.kind, **settings} for row in list_streams(tiny()) for model, settings in row.models.items()
    }
    assert listed == own
