"""Ways through the depth of a decoder.

`eager.py` is the loop. Each of the others is that loop with one thing around it:

    Eager               autograd saves the states
    Recomputed          activation checkpointing, layer by layer; `RecomputedBlocks`: block by block
    Fused               states are saved, every exchange is one operator
    Rebuilt             writes are kept, states are rebuilt in the backward pass (tape, undo, replay, in_place)
    Compiled            torch.compile around another one; `CompiledBlocks`: around every block

`plan_depth` chooses among them by the settings of a run. `model/record.py` has one more, for measurements.
"""

from widestream.model.depth.compiled import Compiled, CompiledBlocks
from widestream.model.depth.eager import Depth, Eager
from widestream.model.depth.operator import Fused
from widestream.model.depth.plan import plan_depth
from widestream.model.depth.rebuilt import OnTape, Rebuilt
from widestream.model.depth.recompute import Recomputed, RecomputedBlocks, sites_of_layers

__all__ = [
    "Compiled",
    "CompiledBlocks",
    "Depth",
    "Eager",
    "Fused",
    "OnTape",
    "Rebuilt",
    "Recomputed",
    "RecomputedBlocks",
    "plan_depth",
    "sites_of_layers",
]
