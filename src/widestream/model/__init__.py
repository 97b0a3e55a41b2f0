"""From a configuration to a decoder: blocks around a stream, a way through its depth, and what that costs.

build.py            `build_model`: an initialised decoder; `meta_model`: one without memory
decoder.py          embedding, a way through the depth, head; the loss
depth/              the ways through the depth; eager.py is the loop
record.py           every exchange of a forward pass, for measurements
costs.py            parameters, FLOPs, bytes, without allocating; catalog.py: of every stream side by side
"""

from widestream.model.build import build_model, meta_model
from widestream.model.costs import summarize
from widestream.model.decoder import Decoder, LossTerms
from widestream.model.record import record_exchanges

__all__ = ["Decoder", "LossTerms", "build_model", "meta_model", "record_exchanges", "summarize"]
