"""Whether two models compute the same: looked at before a converted one is written."""

from dataclasses import replace

import torch

from widestream.errors import UserError
from widestream.model.build import build_model
from widestream.model.decoder import Decoder

LARGEST = 1e-5
"""By how much logits may differ, relative to the largest one."""
ROWS, LONGEST = 2, 64
"""Random tokens that two models are compared on."""


@torch.no_grad()
def require_same(new: Decoder, old: Decoder) -> float:
    """Make sure that a converted model computes what the one does that it was made of.

    Where float32's rounding alone takes them further apart than `LARGEST` (some trained weights amplify it), float64
    decides.

    Returns:
        The largest difference of logits in float32, relative to the largest logit.

    Raises:
        UserError: they differ.
    """
    off = _apart(new, old)
    if off > LARGEST and (exact := _apart(_in_float64(new), _in_float64(old))) > LARGEST:
        raise UserError(
            f"The converted model's logits would be {exact:.1e} of the largest one off, and {LARGEST:.0e} is allowed: "
            "these settings of the stream do not start as the plain transformer; take others."
        )
    return off


def _apart(new: Decoder, old: Decoder) -> float:
    shape = ROWS, min(LONGEST, old.config.context)
    tokens = torch.randint(old.config.vocab_size, shape, generator=torch.Generator().manual_seed(0))
    wanted, got = (model.logits(model(tokens)) for model in (old, new))
    return ((got - wanted).abs().max() / wanted.abs().max()).item()


def _in_float64(model: Decoder) -> Decoder:
    """A copy, whose attention is computed in float64 too."""
    copy = build_model(replace(model.config, upcast_attention=False))
    copy.load_state_dict(model.state_dict())
    return copy.double()
