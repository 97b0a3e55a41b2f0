"""Streams of released models are those models' own: what every block reads, states and gradients, against transformers.

Sizes, lanes and weights are drawn from seeds; gates are far from their start. Errors are relative to the largest entry.
"""

import random

import pytest
import torch

pytest.importorskip("transformers")

from shipped import (
    build_ours,
    build_theirs,
    draw_weights,
    error,
    pass_ours,
    pass_theirs,
)
from shipped_cases import CASES
from widestream.streams import OWN_KINDS, stream_class

SEEDS = range(2)
KINDS = {model: kind for kind in OWN_KINDS for model in stream_class(kind).models}
TOLERANCE = 1e-9
"""In float64."""
ONE_PASS = {"inkling2_loop": "inkling2"}
"""A model of loops, with one pass through them, is that other one."""


def test_there_is_a_case_for_every_released_model():
    assert set(KINDS) == set(CASES) - set(ONE_PASS)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("model_type", CASES)
def test_stream_of_a_released_model(model_type, seed):
    dice, generator = random.Random(f"{model_type} {seed}"), torch.Generator().manual_seed(seed)
    case, layers, width = CASES[model_type], dice.choice([4, 5, 6]), dice.choice([16, 24, 40])
    lanes, gain = dice.choice([2, 3, 4, 5]), dice.choice([0.5, 1.0, 2.0])
    drawn, eps = case.draw(dice, layers), dice.choice([1e-6, 3e-3])
    given = case.theirs(lanes, layers) | drawn.theirs | {"rms_norm_eps": eps}
    theirs = build_theirs(model_type, case, width, layers, given)
    draw_weights(theirs, case, generator, gain)
    kind = KINDS[ONE_PASS.get(model_type, model_type)]
    named = stream_class(kind).models[ONE_PASS.get(model_type, model_type)]
    ours = build_ours(
        kind, named | case.stream(lanes) | drawn.stream, case, width, layers, drawn.model | {"norm_eps": eps}
    )
    with torch.no_grad():
        values = case.ours(dict(theirs.named_parameters()), layers)
        assert set(values) == {name for name, _ in ours.named_parameters()}
        for name, parameter in ours.named_parameters():
            parameter.copy_(values[name] + case.shift(layers).get(name, 0))

    embedding, target = (torch.randn(2, 5, width, generator=generator, dtype=torch.float64) for _ in range(2))
    mine, wanted = embedding.clone().requires_grad_(), embedding.clone().requires_grad_()
    expected = pass_theirs(theirs, wanted, case.inputs)
    got = pass_ours(ours, case, theirs, mine)

    errors = {"output": error(got.output, expected.output)}
    for site, (a, b) in enumerate(zip(got.inputs, expected.inputs, strict=True)):
        errors |= {f"input {role} of block {site}": error(*pair) for role, pair in enumerate(zip(a, b, strict=True))}
    for layer, (a, b) in enumerate(zip(got.states, expected.states, strict=True)):
        errors[f"state behind layer {layer}"] = error(a, b)
    (got.output * target).sum().backward()
    (expected.output * target).sum().backward()
    errors["gradient of the embedding"] = error(mine.grad, wanted.grad)
    gradients = {name: p.grad for name, p in theirs.named_parameters() if p.grad is not None}
    for name, gradient in case.ours(gradients, layers).items():
        errors[f"gradient of {name}"] = error(ours.get_parameter(name).grad, gradient)
    wrong = {name: f"{value:.1e}" for name, value in errors.items() if not value < TOLERANCE}
    assert not wrong, wrong
