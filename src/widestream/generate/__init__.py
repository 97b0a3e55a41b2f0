"""Text out of a model with a KV cache.

sampling.py         `generate`: from a prompt's ids to new ones; temperature, top-k, top-p
decoding.py         token after token, eager or as one compiled step of fixed shapes
"""

from widestream.generate.decoding import Decoding, cast_weights
from widestream.generate.sampling import SamplingConfig, generate

__all__ = ["Decoding", "SamplingConfig", "cast_weights", "generate"]
