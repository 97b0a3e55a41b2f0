"""AdamW with per-parameter rates and two conventions of weight decay, and clipping of the gradient."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from widestream.model.decoder import Decoder
from widestream.recipe.train import OptimizerConfig

# Stands in for a peak rate of 0, by which the independent decay would have to be divided.
SMALLEST_RATE = 1e-30


def build_optimizer(model: Decoder, config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW over the parameters of `model`, grouped by their roles.

    Parameters with the same muP learning-rate factor and the same decay share a group. With r = lr * lr_factor the peak
    rate of a group and s the schedule's factor, one step is

        coupled:      w <- w - s r (u + weight_decay w)
        independent:  w <- w - s (r u + weight_decay w)

    where u is Adam's bias-corrected direction. The second is that of the published RMT code, and equals the first with
    weight_decay / r in place of weight_decay.

    Args:
        model: says the role of every parameter.
        config: rates, moments and decay.

    Returns:
        The optimizer at its peak rates, with moments of zero; `set_lr` puts the schedule on top.
    """
    roles = model.roles()
    decayed = ("weight", "key") if config.decay_keys else ("weight",)
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        role = roles[name]
        groups.setdefault((role.lr_factor, role.decay in decayed), []).append(parameter)
    optimizer = torch.optim.AdamW(
        [_group(parameters, config, *key) for key, parameters in groups.items()],
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        fused=True,
    )
    for parameter in model.parameters():  # now and not at the first step, so that a checkpoint always holds all of them
        optimizer.state[parameter] = {
            "step": torch.zeros((), device=parameter.device),
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": torch.zeros_like(parameter),
        }
    return optimizer


def _group(parameters: list[nn.Parameter], config: OptimizerConfig, lr_factor: float, decays: bool) -> dict[str, Any]:
    peak = config.lr * lr_factor
    weight_decay = config.weight_decay if decays else 0.0
    if config.decay == "independent" and weight_decay:
        peak = max(peak, SMALLEST_RATE)
        weight_decay /= peak
    return {"params": parameters, "lr": peak, "peak_lr": peak, "weight_decay": weight_decay}


def set_lr(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set every group's learning rate to `factor` times its peak."""
    for group in optimizer.param_groups:
        group["lr"] = factor * group["peak_lr"]


def clip_gradients(parameters: Iterable[nn.Parameter], limit: float | None) -> torch.Tensor:
    """Scale all gradients so that their global norm is at most `limit`, as optax does.

    Gradients whose norm is not above the limit are left exactly as they are; others are multiplied by limit / norm.

    Args:
        parameters: those whose gradients count; one without a gradient is passed over.
        limit: largest global norm, or None to only measure it.

    Returns:
        The norm before clipping, a float32 scalar on the gradients' device.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    if limit is not None:
        scale = torch.clamp(limit / norm, max=1.0)
        torch._foreach_mul_(gradients, scale)  # pyright: ignore[reportPrivateImportUsage]
    return norm
