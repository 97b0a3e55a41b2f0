"""What a logit is the sum of: with the norms' scales held, it is a sum over everything that was written.

    logit = sum over writers w of  U . J_w y_w  + constants

y_w is what was written, J_w the linear map by which the stream hands it to the head (keys, gains, gates, the norm's
scale in this pass), U the token's row of the unembedding. (Direct logit attribution, Elhage et al. 2021, for any
stream.)
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from widestream.errors import UserError
from widestream.lens.look import Seen
from widestream.lens.places import Writer
from widestream.lens.shares import Exactness, Read, Replay, in_parts


@dataclass(frozen=True)
class Attribution:
    """A logit, or a difference of two, as a sum over writers."""

    writers: list[Writer]
    values: Tensor
    """[writers, B, T]: what each adds to the logit."""
    constants: Tensor
    """[B, T]: what biases add, of norms and of the head."""
    logit: Tensor
    """[B, T]: the logit itself, before a soft cap."""
    exactness: Exactness
    """Whether gates were held as well."""

    def total(self) -> Tensor:
        """[B, T]: the sum, which is the logit."""
        return self.values.sum(0) + self.constants

    def by_site(self) -> dict[Writer, Tensor]:
        """Sums over the vectors of a writer [B, T]."""
        sums: dict[Writer, Tensor] = {}
        for writer, value in zip(self.writers, self.values, strict=True):
            sums[writer.whole] = sums.get(writer.whole, 0) + value  # type: ignore[assignment]
        return sums


@torch.no_grad()
def attribute(
    seen: Seen, tokens: Tensor | int, minus: Tensor | int | None = None, writers: Sequence[Writer] | None = None
) -> Attribution:
    """Attribute logits to writers.

    Args:
        seen: a pass.
        tokens: whose logit: one id, or one at every position [B, T].
        minus: a token whose logit is taken off, likewise; None: none.
        writers: those of interest, whose sum then falls short of the logit by the others'; None: all.

    Returns:
        What each writer adds, at every position.

    Raises:
        UserError: an unknown token; the stream hands what was written to the head through something that is not linear.
    """
    model = seen.model
    direction = _rows(seen, tokens) if minus is None else _rows(seen, tokens) - _rows(seen, minus)
    direction = direction * model.output_multiplier
    wholes = _at_head(seen, list(dict.fromkeys(writer.whole for writer in seen.writers())))
    found = Exactness()
    found.add(wholes)
    found.require(seen)
    constants = _dots(wholes, direction)[-1]
    if model.head_bias is not None:
        constants = constants + (direction @ model.head_bias)
    asked = seen.writers() if writers is None else list(writers)
    values = [_dots(_at_head(seen, group), direction)[:-1] for group in in_parts(seen, asked)]
    hidden = seen.exchanges[-1].inputs["x"]
    logit = ((hidden if model.head_bias is None else hidden + model.head_bias) * direction).sum(-1)
    return Attribution(asked, torch.cat(values), constants, logit, found)


def _rows(seen: Seen, tokens: Tensor | int) -> Tensor:
    """Rows of the unembedding [B, T, D]."""
    weight = seen.model.head_weight()
    ids = torch.as_tensor(tokens, device=weight.device)
    if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < len(weight):
        raise UserError(
            f"Token {int(ids.min() if ids.min() < 0 else ids.max())} is none of this model's {len(weight)}."
        )
    return weight[ids].expand(*seen.tokens.shape, -1).to(torch.promote_types(weight.dtype, torch.float32))


def _at_head(seen: Seen, writers: Sequence[Writer]) -> Read:
    """What the head gets, share by share."""
    (last,) = Replay(seen, writers, sites=[seen.last])
    return last


def _dots(read: Read, direction: Tensor) -> Tensor:
    """Of every share with `direction` [B, T, D]: [writers + 1, B, T]."""
    shares = read.inputs["x"].shares
    assert shares is not None
    nothing = direction.new_zeros(direction.shape[:-1])
    return torch.stack([nothing if share is None else (share * direction).sum(-1) for share in shares])
