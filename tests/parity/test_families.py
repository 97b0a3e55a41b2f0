"""The plain stream is the published model: logits, gradients, caches and padding against transformers' own classes.

Configurations are drawn at random (from seeds, so that they are the same in every run); weights too, gains and biases
included, which a fresh model has at one and zero.
"""

from typing import Any

import pytest
import torch

transformers = pytest.importorskip("transformers")

from families import FAMILIES, both, tokens_of, weights  # noqa: E402
from widestream.model.decoder import Decoder  # noqa: E402
from widestream.testing.models import copy_of  # noqa: E402

SEEDS = range(4)


def apart(got: torch.Tensor, wanted: torch.Tensor) -> float:
    """Largest difference over the largest number."""
    return ((got - wanted).abs().max() / wanted.abs().max()).item()


def agree(got: torch.Tensor, wanted: torch.Tensor, exact: torch.Tensor) -> bool:
    """Whether logits are within 1e-5, or within twice what float32 rounds theirs by: some weights drawn amplify it."""
    return apart(got, wanted) < max(1e-5, 2 * apart(wanted, exact))


def in_float64(ours: Decoder, tokens: torch.Tensor, **options: Any) -> torch.Tensor:
    """Logits [B, T, V] computed in float64."""
    exact = copy_of(ours, dtype=torch.float64)
    with torch.no_grad():
        return exact.logits(exact(tokens, **options)).float()


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_and_gradients(family, seed):
    theirs, ours = both(family, seed)
    tokens = tokens_of(seed)
    wanted, got = theirs(tokens).logits, ours.logits(ours(tokens))
    assert agree(got, wanted, in_float64(ours, tokens))
    weight = torch.randn_like(wanted)
    (wanted * weight).sum().backward()
    (got * weight).sum().backward()
    named = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    gradients = weights(theirs.config, named)
    assert gradients.keys() == {name for name, _ in ours.named_parameters()}
    # Biases of keys without positions, or the router of one expert, have none: what is there is rounding.
    nothing = 1e-5 * max(gradient.abs().max().item() for gradient in gradients.values())
    for name, parameter in ours.named_parameters():
        if gradients[name].abs().max() < nothing:
            assert parameter.grad.abs().max() < nothing, name
        else:
            assert apart(parameter.grad, gradients[name]) < 1e-4, name


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_with_caches(family, seed):
    theirs, ours = both(family, seed)
    tokens = tokens_of(seed)
    cache, past, got, wanted = ours.new_cache(2, 20), None, [], []
    for start, end in ((0, 7), (7, 8), (8, 12), *((i, i + 1) for i in range(12, 20))):
        out = theirs(tokens[:, start:end], past_key_values=past, use_cache=True)
        past = out.past_key_values
        wanted.append(out.logits)
        got.append(ours.logits(ours(tokens[:, start:end], cache=cache)))
    # Of all tokens together: what float32 rounds a single token's logits by is a matter of luck.
    assert agree(torch.cat(got, dim=1), torch.cat(wanted, dim=1), in_float64(ours, tokens))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_padded_on_the_left(family, seed):
    theirs, ours = both(family, seed)
    tokens, real = tokens_of(seed), torch.ones(2, 20, dtype=torch.bool)
    real[0, :6] = False
    positions = (real.long().cumsum(-1) - 1).clamp(min=0)
    wanted = theirs(tokens, attention_mask=real.long(), position_ids=positions).logits
    order = torch.arange(20)
    mask = (order[:, None] >= order) & real[:, None, :]
    mask |= torch.eye(20, dtype=torch.bool)  # a padded token sees itself, as else its softmax would be of nothing
    cache = ours.new_cache(2, 20)
    got = [
        ours.logits(ours(tokens[:, part], cache=cache, mask=mask[:, part, : part.stop], positions=positions[:, part]))
        for part in (slice(0, 9), slice(9, 20))
    ]
    exact = in_float64(ours, tokens, mask=mask, positions=positions)
    assert agree(torch.cat(got, dim=1)[real], wanted[real], exact[real])
