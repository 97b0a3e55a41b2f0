"""Text out of a model with a KV cache.

sampling.py         `generate`: from a prompt's ids to new ones; temperature, top-k, top-p
decoding.py         token after token, eager or as one compiled step of fixed shapes
batch.py            sequences side by side, of any lengths, that come and go
"""

from widestream.generate.batch import Batch
from widestream.generate.decoding import Decoding, cast_weights
from widestream.generate.sampling import SamplingConfig, generate

__all__ = ["Batch", "Decoding", "SamplingConfig", "cast_weights", "generate"]
