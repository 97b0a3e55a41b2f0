"""The model card of an exported run: what it is, what it was trained on, how well it does, how it is loaded."""

from typing import Any

import yaml

from widestream.recipe import RunConfig
from widestream.recipe.build import without_defaults
from widestream.runs.folder import MADE
from widestream.streams import stream_class
from widestream.version import __version__


def model_card(
    config: RunConfig, info: dict[str, Any], step: int, heldout: tuple[float, int] | None, licence: str | None
) -> str:
    """README.md.

    Args:
        config: the run's recipe.
        info: its run.json.
        step: of the checkpoint.
        heldout: held-out loss there, in nats per token, and of how many tokens; None: it was not measured.
        licence: of the weights, as the hub names licences (`apache-2.0`); None: not said.
    """
    kind, data, summary = config.model.stream.kind, info.get("data", {}), info.get("summary", {})
    head = {"library_name": "transformers", "pipeline_tag": "text-generation", "tags": ["widestream", kind]}
    if licence:
        head["license"] = licence
    tokens = step * data["sequence_length"] * data["batch_size"] if data.get("batch_size") else None
    rows = {
        "residual stream": f"`{kind}`, state {' x '.join(map(str, summary.get('stream_shape', ())))} a token",
        "papers": ", ".join(map(_link, stream_class(kind).spec(config.model).papers)) or "none",
        "parameters": _number(summary.get("parameters", {}).get("total")),
        "of these beside embedding and head": _number(summary.get("parameters", {}).get("non_embedding")),
        **_origin(info, tokens, step),
        "held-out loss": "not measured" if heldout is None else _words(*heldout, data.get("heldout_fingerprint")),
        "context": f"{config.model.context} tokens",
        "licence": licence or "not said by whoever exported it",
        "made with": f"widestream {__version__}; trained with {info.get('widestream')}, torch {info.get('torch')}",
    }  # fmt: skip
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    recipe = yaml.safe_dump(without_defaults(config), sort_keys=False, allow_unicode=True)
    front = yaml.safe_dump(head, sort_keys=False)
    about = f"\n{config.description}\n" if config.description else ""
    top = f"---\n{front}---\n\n# {config.name}\n{about}\n| | |\n|---|---|\n{table}\n"
    return f"{top}\n{_USE}\n## Recipe\n\n```yaml\n{recipe}```\n"


_USE = """## Use

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
inputs = tokenizer("Once upon a time", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=40)[0], skip_special_tokens=True))
```

`trust_remote_code` runs `modeling_widestream.py` of this folder, which was put together from the package's own modules.
Where widestream is installed, `import widestream.hub` does without. Every text begins with the boundary token, as in
training; the tokenizer puts it there.

To train on with `Trainer`, give it an optimizer of `model.parameter_groups(weight_decay)`: by itself it would decay
embeddings, norms and gates too.
"""


def _origin(info: dict[str, Any], tokens: int | None, step: int) -> dict[str, str]:
    """What the weights come from."""
    if made := info.get(MADE):
        return {"made by": f"`widestream {made['by']}` from weights with SHA-256 `{made['sha256']}`; not trained since"}
    data = info.get("data", {})
    return {
        "trained on": f"{_number(tokens)} tokens in {step:,} steps",
        "training data": f"{_number(data.get('train_tokens'))} tokens, fingerprint `{data.get('fingerprint')}`",
    }


def _words(loss: float, tokens: int, fingerprint: str | None) -> str:
    return f"{loss:.4f} nats per token, on {tokens:,} tokens (fingerprint `{fingerprint}`)"


def _number(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else "unknown"


def _link(paper: str) -> str:
    return paper if paper.startswith("http") else f"[arXiv {paper}](https://arxiv.org/abs/{paper})"
