"""Run where widestream cannot be imported: load every folder, and say how far its ways of computing are apart.

python elsewhere.py ROOT OUT.json
"""

import json
import sys
from pathlib import Path

sys.modules["widestream"] = None  # type: ignore[assignment]

import torch  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from transformers import AutoModelForCausalLM, DynamicCache, logging  # noqa: E402

logging.set_verbosity_error()
torch.set_num_threads(1)
NEW = 5


def drawn(model, tokens, mask=None, **how):
    mask = torch.ones_like(tokens) if mask is None else mask
    out = model.generate(
        tokens, attention_mask=mask, max_new_tokens=NEW, pad_token_id=0, **({"do_sample": False} | how)
    )
    return out[:, -NEW:].tolist()


def padded(rows):
    length = max(map(len, rows))
    tokens, mask = torch.zeros(len(rows), length, dtype=torch.long), torch.zeros(len(rows), length, dtype=torch.long)
    for i, row in enumerate(rows):
        tokens[i, length - len(row) :] = row
        mask[i, length - len(row) :] = 1
    return tokens, mask


def ways(folder):
    """Differences of logits by name, as shares of the largest logit; equal texts by name."""
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
    given = load_file(folder / "expected.safetensors")
    tokens, expected = given["tokens"], given["logits"]
    scale = expected.abs().max()

    def apart(found, wanted=expected):
        return float((found - wanted).abs().max() / scale)

    cache = DynamicCache()
    steps = [model(column, past_key_values=cache, use_cache=True).logits for column in tokens.split(1, dim=1)]
    rows = [tokens[0], tokens[1, :5], tokens[1, :1]]
    batch, mask = padded(rows)
    logits = model(batch, attention_mask=mask).logits
    alone = [model(row[None]).logits[0] for row in rows]
    greedy, beams = drawn(model, tokens), drawn(model, tokens, num_beams=3)
    padding = [drawn(model, row[None])[0] for row in rows]
    torch.manual_seed(0)
    sampled = drawn(model, tokens, do_sample=True, top_k=5)
    torch.manual_seed(0)
    return {
        "logits": apart(model(tokens).logits),
        "steps": apart(torch.cat(steps, 1)),
        "padding": max(apart(row[-len(one) :], one) for row, one in zip(logits, alone, strict=True)),
        "same": {
            "greedy": greedy == drawn(model, tokens, use_cache=False),
            "beams": beams == drawn(model, tokens, num_beams=3, use_cache=False),
            "sampled": sampled == drawn(model, tokens, do_sample=True, top_k=5, use_cache=False),
            "static": greedy == drawn(model, tokens, cache_implementation="static"),
            "padded": padding == drawn(model, batch, mask),
            "padded beams": drawn(model, batch, mask, num_beams=2)
            == drawn(model, batch, mask, num_beams=2, use_cache=False),
            "padded static": padding == drawn(model, batch, mask, cache_implementation="static"),
        },
    }


if __name__ == "__main__":
    root, out = Path(sys.argv[1]), Path(sys.argv[2])
    found = {}
    for folder in sorted(root.iterdir()):
        try:
            with torch.no_grad():
                found[folder.name] = ways(folder)
        except Exception as error:
            found[folder.name] = {"error": f"{type(error).__name__}: {error}"}
    out.write_text(json.dumps(found))
