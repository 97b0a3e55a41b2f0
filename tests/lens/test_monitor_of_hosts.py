"""The health of a stream in a model that is not ours."""

import pytest
import torch
from torch import nn

from widestream import UserError, residual
from widestream.lens import check_stream

DIM, SITES = 24, 4


def host(kind, **settings):
    """Branches, stream, and a loss of a pass through both."""
    torch.manual_seed(0)
    branches = nn.ModuleList(nn.Linear(DIM, DIM) for _ in range(SITES))
    stream, embedding = residual(kind, DIM, SITES, **settings), torch.randn(2, 7, DIM)

    def loss():
        state, x = stream.start(embedding)
        for site, branch in enumerate(branches, 1):
            state, x = stream.exchange(site, state, branch(x))
        return x.square().mean()

    return branches, stream, loss, embedding


def test_its_numbers_are_those_of_the_sums_of_a_plain_stream():
    branches, stream, loss, embedding = host("vector", norm=None)
    found = check_stream(stream, loss)
    states, written = [embedding], [embedding]
    for branch in branches:
        written.append(branch(states[-1]))
        states.append(states[-1] + written[-1])
    gradients = torch.autograd.grad(states[-1].square().mean(), written[1:])
    rms = [state.square().mean().sqrt().item() for state in states]
    assert found.state_rms == pytest.approx(rms, rel=1e-5)
    assert found.forward_gain == pytest.approx(rms[-1] / rms[0], rel=1e-5)
    assert found.update == pytest.approx(
        [(w.square().mean().sqrt() / r).item() for w, r in zip(written, rms, strict=True)], rel=1e-5
    )
    slopes = [14 * gradient.square().mean().sqrt().item() for gradient in gradients]
    assert found.written_grad_rms[1:] == pytest.approx(slopes, rel=1e-4)
    assert (found.largest_logit, found.lanes_alike, found.rows_in_use) == (None, None, None)
    assert "largest_logit" not in found.to_row()


def test_lanes_and_rows_and_nothing_is_left_behind():
    branches, stream, loss, _ = host("mhc", lanes=3)
    before = loss().item()
    found = check_stream(stream, loss)
    assert found.lanes_alike[0] == pytest.approx(1, abs=1e-6)
    assert len(found.lanes_alike) == SITES
    assert "exchange" not in vars(stream.core)
    assert all(parameter.grad is None for parameter in (*branches.parameters(), *stream.parameters()))
    assert loss().item() == before
    assert not any(module._forward_pre_hooks for module in stream.modules())
    _, matrix, loss, _ = host("matrix", key_dim=6)
    used = check_stream(matrix, loss).rows_in_use
    assert len(used) == SITES + 1
    assert all(0 < part <= 1 for part in used)


@pytest.mark.parametrize("kind", ["mhc", "attn_res"])
def test_a_model_of_transformers(kind):
    models = pytest.importorskip("host_models")
    from widestream import attach, attached_stream

    model, ids = attach(models.make_host("llama"), kind), models.ids_of(1, 9)
    stream = attached_stream(model)
    found = check_stream(stream, lambda: model(input_ids=ids, labels=ids).loss)
    assert len(found.state_rms) == stream.num_sites + 1
    assert all(value > 0 for value in (*found.state_rms, *found.written_grad_rms))
    model.train()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    again = check_stream(stream, lambda: model(input_ids=ids, labels=ids).loss)
    assert again.written_grad_rms == pytest.approx(found.written_grad_rms, rel=1e-4)


def test_what_cannot_be_looked_at_is_one_sentence():
    _, stream, loss, _ = host("vector")
    with pytest.raises(UserError, match="made 10 exchanges, and one pass has 5"):
        check_stream(stream, lambda: loss() + loss())
    with pytest.raises(UserError, match="made 0 exchanges"):
        check_stream(stream, lambda: torch.zeros((), requires_grad=True))

    @torch.no_grad()
    def without():
        return loss()

    with pytest.raises(UserError, match="no gradients by what is written"):
        check_stream(stream, without)
    assert "exchange" not in vars(stream.core)
