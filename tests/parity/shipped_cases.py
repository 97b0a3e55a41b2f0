"""The released models whose streams are built here, one case each; see shipped.py."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from shipped import Case, Drawn, Named

DENSE = {"num_experts": 2, "num_local_experts": 2, "n_routed_experts": 2, "num_experts_per_tok": 1,
         "moe_intermediate_size": 8}  # fmt: skip
"""Small experts, which are replaced anyway."""


def stacked(theirs: Named, layers: int, attention: str, mlp: str) -> Tensor:
    """Parameters of all sites one above the other: of each layer that beside attention, then that beside the MLP."""
    return torch.stack([theirs[f"layers.{layer}.{name}"] for layer in range(layers) for name in (attention, mlp)])


def norms(theirs: Named, layers: int, attention: str = "input_layernorm", mlp: str = "post_attention_layernorm",
          last: str | None = "norm") -> Named:  # fmt: skip
    """Gains in front of every block and of the head."""
    names = [f"layers.{layer}.{name}" for layer in range(layers) for name in (attention, mlp)]
    return {f"norms.{site}.gain": theirs[f"{name}.weight"] for site, name in enumerate([*names, last]) if name}


# -- lanes


def connections(theirs: Named, layers: int) -> Named:
    """mHC. Their comb is our H_res, turned."""
    phi, base, alpha = (stacked(theirs, layers, f"attn_hc.{x}", f"ffn_hc.{x}") for x in ("fn", "base", "scale"))
    n = next(n for n in range(2, 9) if base.shape[1] in (2 * n, 2 * n + n * n) and phi.shape[2] % n == 0
             and (base.shape[1] == 2 * n) == (alpha.shape[1] == 2))  # fmt: skip
    ours = {"alpha": alpha, "b_pre": base[:, :n], "b_post": base[:, n : 2 * n]}
    if base.shape[1] > 2 * n:
        square = phi[:, 2 * n :].unflatten(1, (n, n)).transpose(1, 2).flatten(1, 2)
        phi = torch.cat([phi[:, : 2 * n], square], dim=1)
        ours["b_res"] = base[:, 2 * n :].unflatten(1, (n, n)).mT
    head = {}
    if "hc_head.hc_fn" in theirs:
        names = {"head_phi": "hc_fn", "head_alpha": "hc_scale", "head_b": "hc_base"}
        head = {ours: theirs[f"hc_head.{name}"] for ours, name in names.items()}
    return ours | {"phi": phi} | head | norms(theirs, layers)


def deposited(stream: Any, site: int, before: Any, written: Tensor, after: Any) -> Tensor:
    """Lanes, as they are between a write and the next reader's mixing."""
    return stream.deposit(before, written)


def gated(theirs: Named, layers: int) -> Named:
    """Qwen4's gated residual; the head's mixer has no write."""
    readers = [f"layers.{layer}.{name}_hyper_connection" for layer in range(layers) for name in ("attn", "mlp")]
    ours: Named = {}
    for site, name in enumerate([*readers, "hyper_connection_mixer"]):
        down = theirs[f"{name}.input_mix_weight_down.weight"]
        gain, n = theirs[f"{name}.hc_norm.weight"], lanes_of(theirs)
        ours |= {f"norms.{site}.gain": gain.view(n, -1), f"down_{site}": down}
        ours[f"up_{site}"] = theirs[f"{name}.input_mix_weight_up.weight"]
        if site < len(readers):
            ours[f"write_{site}"] = theirs[f"{name}.block_inject_weight.weight"]
    return ours


def lanes_of(theirs: Named) -> int:
    """How many lanes Qwen4's blocks write to."""
    return theirs["layers.0.attn_hyper_connection.block_inject_weight.weight"].shape[0]


def alternating(theirs: Named, layers: int) -> Named:
    """Gemma 3n's AltUp and LAuReL."""

    def stack(name: str) -> Tensor:
        return torch.stack([theirs[f"layers.{layer}.{name}.weight"] for layer in range(layers)])

    maps = {part: [x for name, x in theirs.items() if name.startswith(f"altup_{part}")]
            for part in ("projections", "unembed_projections")}  # fmt: skip
    for_layers = {"router_norms": "altup.router_norm", "laurel_norms": "laurel.post_laurel_norm"}
    return norms(theirs, layers, *SANDWICH) | {
        "spread_maps": torch.cat(maps["projections"]),
        "collect_maps": torch.stack(maps["unembed_projections"]),
        "router": stack("altup.modality_router"),
        "predict": stack("altup.prediction_coefs"),
        "correct": stack("altup.correction_coefs"),
        "down": stack("laurel.linear_left"),
        "up": stack("laurel.linear_right"),
        **{f"{ours}.{layer}.gain": theirs[f"layers.{layer}.{name}.weight"]
           for ours, name in for_layers.items() for layer in range(layers)},
    }  # fmt: skip


def corrected(stream: Any, site: int, before: Any, written: Tensor, after: Any) -> Tensor:
    """AltUp's lanes at a layer's end, lanes first."""
    return stream.corrected(site, before, written).movedim(-2, 0)


# -- depth


def block_attention(theirs: Named, layers: int) -> Named:
    """AttnRes. Layer 0 has no query for its attention; where attention sees all there are three, and three norms."""
    queries: list[Tensor] = []
    gains = {f"norms.{2 * layers}.gain": theirs["norm.weight"]}
    for layer in range(layers):
        name, site = f"layers.{layer}", 2 * layer
        if layer:
            queries += theirs[f"{name}.attention_input.query"].view(-1, theirs["norm.weight"].shape[0])
        queries.append(theirs[f"{name}.mlp_input.query"])
        gains[f"norms.{site + 1}.gain"] = theirs[f"{name}.post_attention_layernorm.weight"]
        if f"{name}.input_layernorm.weight" in theirs:
            gains[f"norms.{site}.gain"] = theirs[f"{name}.input_layernorm.weight"]
            continue
        for role, ours in (("q", f"norms.{site}"), ("k", f"key_norms.{site}"), ("v", f"value_norms.{site}")):
            gains[f"{ours}.gain"] = theirs[f"{name}.{role}_input_layernorm.weight"]
    return gains | {"queries": torch.stack([*queries, theirs["final_input.query"]])}


def draw_windows(dice: Any, layers: int) -> Drawn:
    """Which layers see all tokens, and how many layers a block has."""
    every, block = dice.choice([1, 2, 3]), dice.choice([1, 2])
    kinds = ["hybrid" if (layer + 1) % every == 0 else "hybrid_sliding" for layer in range(layers)]
    return Drawn(
        theirs={"layer_types": kinds, "n_layers_per_attn_res_block": block, "sliding_window": 3},
        stream={"group_size": 2 * block},
        model={"attention_window": 3, "full_attention_every": every},
    )


INKLING = Case(
    classes=("Inkling2TextConfig", "Inkling2TextModel"),
    theirs=lambda lanes, layers: {},
    ours=block_attention,
    draw=draw_windows,
    state=lambda stream, site, before, written, after: after.sources[-1],
)

# -- one vector


def scaled_by_type(dice: Any, layers: int) -> Drawn:
    """MiniMax's factors, one pair for attention of either kind and one for MLPs."""
    alpha, beta, alpha_mlp, beta_mlp = (dice.choice([0.5, 1.0, 1.3, 3.5]) for _ in range(4))
    attention = {f"{kind}_attn_{name}_factor": x for kind in ("full", "linear")
                 for name, x in (("alpha", alpha), ("beta", beta))}  # fmt: skip
    kinds = {"layer_types": [dice.choice(["full_attention", "linear_attention"]) for _ in range(layers)]}
    mlps = {"mlp_alpha_factor": alpha_mlp, "mlp_beta_factor": beta_mlp}
    ours = {"alpha": alpha, "beta": beta, "alpha_mlp": alpha_mlp, "beta_mlp": beta_mlp}
    return Drawn(attention | mlps | kinds, ours)


def affine(theirs: Named, layers: int) -> Named:
    """ZAYA's gains and biases; the embedding's stand in front of theirs."""
    stack = {
        name: stacked(theirs, layers, f"post_attention_residual_scale.{name}", f"post_mlp_residual_scale.{name}")
        for name in ("residual_scale", "residual_bias", "hidden_states_scale", "hidden_states_bias")
    }
    first = {name: theirs[f"input_{name}"][None] for name in ("hidden_states_scale", "hidden_states_bias")}
    return norms(theirs, layers) | {
        "gain": stack["residual_scale"],
        "bias": stack["residual_bias"],
        "write_gain": torch.cat([first["hidden_states_scale"], stack["hidden_states_scale"]]),
        "write_bias": torch.cat([first["hidden_states_bias"], stack["hidden_states_bias"]]),
    }


def weighted(stream: Any, site: int, before: Tensor, written: Tensor) -> Tensor:
    """MiniMax's sum in front of the norm that goes on."""
    a, b = stream.numbers[site - 1]
    return a * before + b * written


NO_MASK = {"attention_mask": None}
"""For models that make their one mask themselves."""
SANDWICH = "input_layernorm", "pre_feedforward_layernorm"
BEHIND = "post_attention_layernorm", "post_feedforward_layernorm"
DRAWN_BETA = (0.1, 0.22, 0.7)

CASES: dict[str, Case] = {
    "deepseek_v4": Case(
        classes=("DeepseekV4Config", "DeepseekV4Model"),
        theirs=lambda lanes, layers: {"hc_mult": lanes} | DENSE,
        ours=connections,
        stream=lambda lanes: {"lanes": lanes},
        state=deposited,
    ),
    "glm5_next": Case(
        classes=("Glm5NextTextConfig", "Glm5NextTextModel"),
        theirs=lambda lanes, layers: {"hc_mult": lanes, "mlp_layer_types": ["dense"] * layers},
        ours=connections,
        stream=lambda lanes: {"lanes": lanes},
        state=deposited,
        extra=lambda layer: (0 if layer.block_type == "linear_attention" else 2, 0),
    ),
    "hy_v4": Case(
        classes=("HYV4Config", "HYV4Model"),
        theirs=lambda lanes, layers: {"hc_mult": lanes, "mlp_layer_types": ["dense"] * layers},
        ours=connections,
        stream=lambda lanes: {"lanes": lanes},
        draw=lambda dice, layers: Drawn({"hc_magnitude": (m := dice.choice([1.0, 2.0, 3.5]))}, {"magnitude": m}),
        state=deposited,
        extra=lambda layer: (2, 0),
    ),
    "inkling2": INKLING,
    "inkling2_loop": replace(
        INKLING,
        classes=("Inkling2LoopTextConfig", "Inkling2LoopTextModel"),
        theirs=lambda lanes, layers: {"loop_layer_index_start": 2, "loop_layer_index_end": 4, "loop_num_passes": 1},
    ),
    "granite": Case(
        classes=("GraniteConfig", "GraniteModel"),
        theirs=lambda lanes, layers: {},
        draw=lambda dice, layers: Drawn({"residual_multiplier": (m := dice.choice(DRAWN_BETA))}, {"beta": m}),
        ours=norms,
        inputs=NO_MASK,
    ),
    "minicpm3": Case(
        classes=("MiniCPM3Config", "MiniCPM3Model"),
        theirs=lambda lanes, layers: {"scale_emb": 1},
        draw=lambda dice, layers: Drawn({"scale_depth": (m := dice.choice([1.4, 0.6]))}, {"beta": m}),
        ours=norms,
        inputs=NO_MASK,
    ),
    "minimax": Case(
        classes=("MiniMaxConfig", "MiniMaxModel"),
        theirs=lambda lanes, layers: DENSE,
        draw=scaled_by_type,
        ours=norms,
        state=lambda stream, site, before, written, after: weighted(stream, site, before, written),
    ),
    "beam": Case(
        classes=("BeamConfig", "BeamModel"),
        theirs=lambda lanes, layers: {"mlp_layer_types": ["dense"] * layers},
        ours=lambda theirs, layers: norms(theirs, layers, *SANDWICH),
        behind=BEHIND,
    ),
    "gemma4": Case(
        classes=("Gemma4TextConfig", "Gemma4TextModel"),
        theirs=lambda lanes, layers: {"hidden_size_per_layer_input": 0, "layer_types": ["full_attention"] * layers},
        ours=lambda theirs, layers: (
            norms(theirs, layers, *SANDWICH)
            | {"gain": torch.cat([theirs[f"layers.{layer}.layer_scalar"] for layer in range(layers)])}
        ),
        behind=BEHIND,
    ),
    "doge": Case(
        classes=("DogeConfig", "DogeModel"),
        theirs=lambda lanes, layers: {},
        ours=lambda theirs, layers: (
            norms(theirs, layers) | {"gain": stacked(theirs, layers, "input_residual", "post_attention_residual")}
        ),
        inputs=NO_MASK,
    ),
    "zaya": Case(
        classes=("ZayaConfig", "ZayaModel"),
        theirs=lambda lanes, layers: {},
        ours=affine,
        extra=lambda layer: (1, 1),
    ),
    "muse_spark": Case(
        classes=("MuseSparkTextConfig", "MuseSparkTextModel"),
        theirs=lambda lanes, layers: {"mlp_layer_types": ["dense"] * layers},
        draw=lambda dice, layers: Drawn(
            {"residual_gate_temperature": (t := dice.choice([0.3, 1.0]))}, {"temperature": t}
        ),
        ours=lambda theirs, layers: (
            norms(theirs, layers, *SANDWICH)
            | {
                "gain": stacked(
                    theirs, layers, "post_attention_residual_gate.gate", "post_feedforward_residual_gate.gate"
                )
            }
        ),
        model={"norm_offset": True},
        shift=lambda layers: {f"norms.{2 * layers}.gain": -1},
        behind=BEHIND,
    ),
    "qwen4_exp": Case(
        classes=("Qwen4ExpTextConfig", "Qwen4ExpTextModel"),
        theirs=lambda lanes, layers: {"hc_count": lanes, "layer_types": ["linear_attention"] * layers} | DENSE,
        draw=lambda dice, layers: Drawn({"hc_lowrank": (r := dice.choice([3, 8, 20]))}, {"rank": r}),
        stream=lambda lanes: {"lanes": lanes},
        ours=gated,
        model={"norm_offset": True},
        state=lambda stream, site, before, written, after: stream.deposit(before, written).flatten(-2),
        extra=lambda layer: (0, 0),
    ),
    "gemma3n": Case(
        classes=("Gemma3nTextConfig", "Gemma3nTextModel"),
        theirs=lambda lanes, layers: {
            "altup_num_inputs": lanes,
            "hidden_size_per_layer_input": 2,
            "vocab_size_per_layer_input": 11,
            "num_kv_shared_layers": 0,
        },
        draw=lambda dice, layers: Drawn({"laurel_rank": (r := dice.choice([3, 8, 20]))}, {"rank": r}),
        stream=lambda lanes: {"lanes": lanes},
        ours=alternating,
        behind=BEHIND,
        state=corrected,
        zero=("per_layer_projection.weight",),
    ),
}
