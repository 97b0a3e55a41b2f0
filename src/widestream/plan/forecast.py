"""One layout of a run: whether it fits, what it sends, how long a step takes."""

from collections import defaultdict
from dataclasses import asdict, dataclass
from typing import Any

from widestream.errors import UserError
from widestream.model.build import meta_model
from widestream.model.costs import OF_BLOCKS, count_flops
from widestream.model.live import Live
from widestream.plan.devices import STREAMED, USED, Device
from widestream.plan.memory import Memory, at_work, shares, step_bytes
from widestream.plan.traffic import Link, Sent, traffic
from widestream.recipe import RunConfig
from widestream.train.layout import Layout, choose_layout
from widestream.train.plan import Plan, make_plan

MFU = 0.4
"""Share of a device's peak at which today's trainings of dense models compute, where none is given."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Forecast:
    """What a run would take. Memory is counted or measured; times are estimates from printed rates."""

    layout: Layout
    """Who holds what."""
    plan: Plan
    """Sizes of a step."""
    checkpointing: bool
    """Whether layers are computed again in the backward pass (`train.activation_checkpointing`)."""
    memory: Memory
    """Of the process that holds most."""
    room: float
    """Bytes of a device that training can use."""
    sent: list[Sent]
    """By each process in a step."""
    computing_s: float
    """Seconds of a step for matrix products, at `mfu` of the peak."""
    streaming_s: float
    """Seconds of a step for the stream's exchanges, at the bandwidth of memory."""
    sending_s: dict[Link, float]
    """Seconds of a step on each link, were it used at its printed rate."""

    @property
    def fits(self) -> bool:
        """Whether a device holds it."""
        return self.memory.total <= self.room

    @property
    def step_s(self) -> tuple[float, float]:
        """Seconds of a step if all that is sent is sent while the device computes; and if nothing is."""
        own, sending = self.computing_s + self.streaming_s, sum(self.sending_s.values())
        return max(own, *self.sending_s.values(), 0.0), own + sending

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        least, most = self.step_s
        days = (self.plan.steps * least / 86400, self.plan.steps * most / 86400)
        return {
            "layout": self.layout.describe(),
            "micro_batch_size": self.plan.micro_batch_size,
            "micro_batches": self.plan.micro_batches,
            "activation_checkpointing": self.checkpointing,
            "fits": self.fits,
            "room_bytes": self.room,
            "memory_bytes": {**asdict(self.memory), "total": self.memory.total},
            "sent_bytes_per_step": [asdict(sent) for sent in self.sent],
            "seconds_per_step": {
                "computing": self.computing_s,
                "streaming": self.streaming_s,
                "sending": self.sending_s,
                "least": least,
                "most": most,
            },
            "tokens_per_step": self.plan.tokens_per_step,
            "steps": self.plan.steps,
            "days": days,
        }


def forecast(
    config: RunConfig, layout: Layout, device: Device, precision: str, mfu: float = MFU, live: Live | None = None
) -> Forecast:
    """Work out one layout, without a device and without the model.

    Args:
        config: the run.
        layout: its product is the number of devices.
        device: what each of them is.
        precision: `bf16` or `float32`.
        mfu: share of the peak that matrix products reach.
        live: what a step has alive (`memory.step_bytes`), if that is known already.

    Raises:
        UserError: sizes that do not fit together.
    """
    if not 0 < mfu <= 1:
        raise UserError(f"--mfu is the share of a device's peak that is reached, above 0 and at most 1, not {mfu:g}.")
    plan = make_plan(config, layout.replicate * layout.shard)
    model = meta_model(config.model)
    live = live or step_bytes(config, plan.micro_batch_size, plan.sequence_length, precision, layout, device.gpu)
    weights, gradients, moments = shares(config, model, layout)
    sent = traffic(config, model, layout, plan, precision, device)
    rates: dict[Link, float] = {"inside": device.inside, "between": device.between}
    on_links: dict[Link, float] = defaultdict(float)
    for one in sent:
        on_links[one.link] += one.bytes
    tokens = plan.tokens_per_step / (layout.replicate * layout.block_parts)
    passes = 4 if config.train.activation_checkpointing else 3  # a backward pass is two
    forward = sum(number / (layout.tensor if part in OF_BLOCKS else 1) for part, number in count_flops(model).items())
    return Forecast(
        layout=layout,
        plan=plan,
        checkpointing=config.train.activation_checkpointing,
        memory=Memory(
            weights=weights,
            gradients=gradients,
            moments=moments,
            whole=at_work(model, layout),
            kept=live.kept,
            working=live.most - live.kept,
        ),
        room=USED * device.memory,
        sent=sent,
        computing_s=passes * forward * tokens / (mfu * device.flops),
        streaming_s=passes * model.stream.cost().bytes_moved * tokens / (STREAMED * device.bandwidth),
        sending_s={link: size / rates[link] for link, size in on_links.items()},
    )


def asked_for(config: RunConfig, devices: int, device: Device, precision: str, mfu: float = MFU) -> Forecast:
    """The run as its recipe sets it: the layout that so many processes would choose.

    Raises:
        UserError: sizes that do not fit together.
    """
    weights = sum(parameter.numel() for parameter in meta_model(config.model).parameters())
    layout = choose_layout(config.train.parallel, devices, weights, device.memory, precision)
    return forecast(config, layout, device, precision, mfu)
