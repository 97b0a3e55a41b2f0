"""AdamW, or Muon with AdamW, with per-parameter rates and two conventions of weight decay; clipping of the gradient."""

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

import torch
from torch import nn

from widestream.blocks.roles import Role
from widestream.errors import UserError
from widestream.model.build import meta_model
from widestream.model.decoder import Decoder
from widestream.recipe import RunConfig
from widestream.recipe.train import MuonConfig, OptimizerConfig
from widestream.train.optim_muon import Divided, MuonGroup, MuonWithAdamW, muon_rate, muon_takes
from widestream.train.shards import Shares, mesh_of, own

# Stands in for a peak rate of 0, by which the independent decay would have to be divided.
SMALLEST_RATE = 1e-30


def build_optimizer(model: Decoder, config: OptimizerConfig) -> torch.optim.AdamW | MuonWithAdamW:
    """The optimizer over the parameters of `model`, grouped by their roles.

    Parameters with the same learning-rate factor (that of muP times that of `lr_factors`) and the same decay share a
    group. Those with factor 0 are frozen: they take no gradient from here on. With r = lr * lr_factor the peak rate of
    a group and s the schedule's factor, one step is

        coupled:      w <- w - s r (u + weight_decay w)
        independent:  w <- w - s (r u + weight_decay w)

    where u is Adam's bias-corrected direction, or Muon's orthogonal one times its scale by shape; see `muon_rate` for
    Muon's r. The second is that of the published RMT code, and equals the first with weight_decay / r in place of
    weight_decay.

    Args:
        model: says the role of every parameter.
        config: kind, rates, moments and decay.

    Returns:
        The optimizer at its peak rates, with moments of zero; `set_lr` puts the schedule on top, `set_momentum` Muon's
        warm-up.

    Raises:
        UserError: Muon cannot serve this model as it is set, or `lr_factors` fit no parameter or freeze all.
    """
    parameters, roles = dict(model.named_parameters()), model.roles()
    factors = rate_factors(roles, config)
    for name, parameter in parameters.items():
        parameter.requires_grad_(factors[name] > 0)
    matrices = muon_takes(roles, config)
    taken = [name for name in matrices if factors[name]]
    rest = [name for name in parameters if name not in taken]
    adamw = _adamw(parameters, rest, roles, config, factors)
    if config.muon is None or (matrices and not taken):
        return adamw
    if not matrices:
        own = "optimizer.muon.keys=true for the stream's own, or " if any(role.muon for role in roles.values()) else ""
        raise UserError(
            f"optimizer.kind is muon, but blocks have no matrix in this model; set {own}optimizer.kind=adamw."
        )
    rate = muon_rate(model.config, config.lr, config.muon)
    shares, heads = Shares(model), config.muon.split_heads
    divided = {name: Divided(name, parameters[name], roles[name], heads, shares) for name in taken}
    groups = _muon_groups(divided, roles, config, config.muon, rate, factors)
    return MuonWithAdamW(groups, config.muon, adamw)


def rate_factors(roles: Mapping[str, Role], config: OptimizerConfig) -> dict[str, float]:
    """What `lr_factors` make of every parameter's rate, by name; 1 where they do not speak of it.

    Raises:
        UserError: a key fits no parameter, or all are frozen.
    """
    factors = dict.fromkeys(roles, 1.0)
    for key, factor in config.lr_factors.items():
        meant = [name for name, role in roles.items() if role.part == key or fnmatchcase(name, key)]
        if not meant:
            parts = ", ".join(dict.fromkeys(role.part for role in roles.values()))
            raise UserError(
                f"optimizer.lr_factors.{key} fits no parameter of this model; give a part ({parts}) or a pattern of "
                "names such as blocks.*."
            )
        factors |= dict.fromkeys(meant, factor)
    if not any(factors.values()):
        raise UserError("optimizer.lr_factors freeze every parameter; leave one above 0.")
    return factors


def count_by_optimizer(config: RunConfig) -> dict[str, int]:
    """Parameters of a recipe's model, counted without making it, by what updates them.

    `adamw`, `muon` if asked for, and `frozen` if any are.
    """
    model = meta_model(config.model)
    roles = model.roles()
    taken, factors = set(muon_takes(roles, config.optimizer)), rate_factors(roles, config.optimizer)
    counts = {"muon": 0, "adamw": 0} if config.optimizer.kind == "muon" else {"adamw": 0}
    counts |= {} if all(factors.values()) else {"frozen": 0}
    for name, parameter in model.named_parameters():
        by = "frozen" if not factors[name] else "muon" if name in taken else "adamw"
        counts[by] += parameter.numel()
    return counts


def _adamw(
    parameters: dict[str, nn.Parameter],
    names: list[str],
    roles: dict[str, Role],
    config: OptimizerConfig,
    factors: Mapping[str, float],
) -> torch.optim.AdamW:
    groups: dict[tuple[float, float, object], list[nn.Parameter]] = {}
    for name in names:
        decay = _decay(roles[name], config, config.weight_decay) if factors[name] else 0.0
        # torch steps a group as one, which parameters that other processes share out cannot be.
        key = (config.lr * roles[name].lr_factor * factors[name], decay, mesh_of(parameters[name]))
        groups.setdefault(key, []).append(parameters[name])
    optimizer = torch.optim.AdamW(
        [{"params": group, **_rates(rate, decay, config)} for (rate, decay, _), group in groups.items()],
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        fused=True,
    )
    for name in names:  # now and not at the first step, so that a checkpoint always holds all of them
        parameter = parameters[name]
        optimizer.state[parameter] = {
            "step": torch.zeros((), device=parameter.device),
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": torch.zeros_like(parameter),
        }
    return optimizer


def _muon_groups(
    divided: dict[str, Divided],
    roles: dict[str, Role],
    config: OptimizerConfig,
    muon: MuonConfig,
    rate: float,
    factors: Mapping[str, float],
) -> list[MuonGroup]:
    strength = config.weight_decay if muon.weight_decay is None else muon.weight_decay
    groups: dict[tuple[float, float], list[Divided]] = {}
    for name, one in divided.items():
        key = (rate * factors[name], _decay(roles[name], config, strength))
        groups.setdefault(key, []).append(one)
    return [MuonGroup(members, _rates(*key, config)) for key, members in groups.items()]


def _decay(role: Role, config: OptimizerConfig, strength: float) -> float:
    return strength if role.decay in (("weight", "key") if config.decay_keys else ("weight",)) else 0.0


def _rates(peak: float, weight_decay: float, config: OptimizerConfig) -> dict[str, float]:
    if config.decay == "independent" and weight_decay:
        peak = max(peak, SMALLEST_RATE)
        weight_decay /= peak
    return {"lr": peak, "peak_lr": peak, "weight_decay": weight_decay}


def set_lr(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set every group's learning rate to `factor` times its peak."""
    for group in optimizer.param_groups:
        group["lr"] = factor * group["peak_lr"]


def set_momentum(optimizer: torch.optim.Optimizer, step: int) -> None:
    """Set Muon's momentum for the step with this number, from 0; AdamW's stay."""
    if isinstance(optimizer, MuonWithAdamW):
        optimizer.set_momentum(step)


def clip_gradients(
    parameters: Iterable[nn.Parameter], limit: float | None, norm: torch.Tensor | None = None
) -> torch.Tensor:
    """Scale all gradients so that their global norm is at most `limit`, as optax does.

    Gradients whose norm is not above the limit are left exactly as they are; others are multiplied by limit / norm.

    Args:
        parameters: those whose gradients count; one without a gradient is passed over.
        limit: largest global norm, or None to only measure it.
        norm: of all gradients, where processes hold parts of them (`shards.gradient_norm`).

    Returns:
        The norm before clipping, a float32 scalar on the gradients' device.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients) if norm is None else norm
    if limit is not None:
        scale = torch.clamp(limit / norm, max=1.0)
        torch._foreach_mul_(own(gradients), scale)  # pyright: ignore[reportPrivateImportUsage]
    return norm
