"""What a training run would take on machines that are not here: memory, traffic, time, and the layout to choose.

`devices.py` what a device holds, computes and sends; `memory.py` and `traffic.py` bytes of each process by part, and
what it sends in a step; `forecast.py` both and the time of a step for one layout; `advice.py` the best of all layouts.
"""

from widestream.plan.advice import advise
from widestream.plan.devices import DEVICES, Device, find_kind
from widestream.plan.forecast import Forecast, forecast

__all__ = ["DEVICES", "Device", "Forecast", "advise", "find_kind", "forecast"]
