"""Rotary positions in config.json: the newer form (`rope_parameters`) and the older one (`rope_scaling`)."""

from collections.abc import Mapping
from typing import Any

from widestream.errors import UserError, shown

THETA = {"smollm3": 2e6, "mixtral": 1e6, "gemma3_text": 1e6}
"""transformers' default base, where that is not 10,000."""
LOCAL_THETA = 1e4
"""Gemma 3: that of layers with a window."""

_NAMES = {
    "default": {},
    "linear": {"factor": "factor"},
    "llama3": {
        "factor": "factor", "original_max_position_embeddings": "original_context", "low_freq_factor": "low_frequency",
        "high_freq_factor": "high_frequency",
    },
    "yarn": {
        "factor": "factor", "original_max_position_embeddings": "original_context", "beta_fast": "beta_fast",
        "beta_slow": "beta_slow", "attention_factor": "attention_factor", "truncate": "truncate",
    },
}  # fmt: skip
"""The types of scaling that are known, their settings there, and what those are called here."""


def rotary_settings(values: Mapping[str, Any], kinds: list[str]) -> dict[str, Any]:
    """Base and scaling, which may differ between layers that have a window and those that have none.

    Args:
        values: config.json, with defaults.
        kinds: `full_attention` or `sliding_attention`, of every layer.

    Raises:
        UserError: a scaling that models here do not have.
    """
    split = values["model_type"] == "gemma3_text"
    full, local = _gemma3(values) if split else (_single(values), None)
    settings: dict[str, Any] = {"rotary_base": full["rope_theta"]}
    if local is not None:
        if _type(local) != "default":
            raise _refused("a scaling of rotary positions in layers with a window")
        if "sliding_attention" in kinds:
            settings["rotary_window_base"] = local["rope_theta"]
    kind = _type(full)
    if kind == "default":
        return settings
    trained = values.get("original_max_position_embeddings")  # beside the scaling it counts first
    if trained is not None:
        full["original_max_position_embeddings"] = trained
    elif kind in ("llama3", "yarn") and full.get("original_max_position_embeddings") is None:
        full["original_max_position_embeddings"] = values["max_position_embeddings"]
    if kind == "yarn" and full.get("attention_factor") is None and full.get("mscale") and full.get("mscale_all_dim"):
        raise _refused("mscale of rotary positions")
    scaling = {ours: full[name] for name, ours in _NAMES[kind].items() if full.get(name) is not None}
    return settings | {"rotary_scaling": scaling | {"kind": kind, "layers": "full" if split else "all"}}


def _single(values: Mapping[str, Any]) -> dict[str, Any]:
    """One base for all layers; transformers prefers the older name where there are both."""
    rope = _mapping(values, "rope_scaling") or _mapping(values, "rope_parameters")
    if rope.keys() & {"full_attention", "sliding_attention"}:
        raise _refused("rotary positions that differ from layer to layer")
    theta = values.get("rope_theta")
    return {"rope_theta": THETA.get(values["model_type"], 1e4) if theta is None else theta} | rope


def _gemma3(values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Of layers without a window, and of those with one."""
    rope, scaling = _mapping(values, "rope_parameters"), _mapping(values, "rope_scaling")
    full, local = (_mapping(rope, name) for name in ("full_attention", "sliding_attention"))
    full |= scaling
    full.setdefault("rope_theta", values.get("rope_theta", THETA["gemma3_text"]))
    local.setdefault("rope_theta", values.get("rope_local_base_freq", LOCAL_THETA))
    return full, local


def _mapping(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Settings of that name; none where it is absent or null."""
    value = values.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise _refused(f"{name} {shown(value)}")
    return dict(value)


def _type(rope: Mapping[str, Any]) -> str:
    kind = rope.get("rope_type", rope.get("type", "default"))
    if not isinstance(kind, str) or kind not in _NAMES:
        raise _refused(f"rotary positions of type {shown(kind)}")
    if rope.get("partial_rotary_factor", 1.0) not in (None, 1.0):
        raise _refused("rotary positions of a part of every head (partial_rotary_factor)")
    return kind


def _refused(what: str) -> UserError:
    return UserError(
        f"config.json has {what}, which cannot be imported; known are the types {', '.join(_NAMES)}, the same in all "
        "layers, and Gemma 3's two bases."
    )
