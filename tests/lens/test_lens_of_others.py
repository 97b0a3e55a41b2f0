"""Models that came from elsewhere are looked at like others: of transformers, imported, with another stream."""

import pytest
import torch

from lens_passes import TODAY
from widestream.lens import attribute, look
from widestream.testing.models import random_model, small_config, tokens_of


@pytest.mark.parametrize("kind", ["vector", "matrix", "mhc"])
def test_a_model_of_transformers_is_looked_at_by_its_decoder(kind):
    hub = pytest.importorskip("widestream.hub.modeling")
    from widestream.hub.configuration import WidestreamConfig

    stream = {"kind": kind, **({"key_dim": 8} if kind == "matrix" else {})}
    config = small_config(stream, {"positions": "rotary"})
    model = hub.WidestreamForCausalLM(WidestreamConfig.of(config)).eval()
    tokens = tokens_of(1, 12)
    with torch.no_grad():
        logits = model(tokens).logits
    found = attribute(look(model.decoder, tokens), 3)
    torch.testing.assert_close(found.total(), logits[..., 3], rtol=1e-4, atol=1e-5)


def test_a_tied_head_experts_and_a_token_before():
    changes = TODAY | {"moe": {"num_experts": 4, "top_k": 2}, "token_before": "smear", "logit_soft_cap": 5.0}
    model = random_model({"kind": "vector"}, changes).eval()
    seen = look(model, tokens_of(2, 20))
    found = attribute(seen, 5)
    capped = 5.0 * torch.tanh(found.total() / 5.0)
    torch.testing.assert_close(capped, seen.logits[..., 5], rtol=1e-4, atol=1e-4)
