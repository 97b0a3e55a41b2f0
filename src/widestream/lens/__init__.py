"""What is written to a residual stream, what is read from it, and by whom. See docs/how-to/lens.md.

`look` runs a model and keeps everything by name; `attribute` says what a logit is the sum of; `flow`, `keys` and
`weights` say who reads whom; `edit` changes a pass; `logit_lens`, `held` and `composition` measure. No stream has code
of its own for it: a tensor that knows its shares (`parted.py`) goes through the stream's own write and read.
"""

from widestream.lens.attribution import Attribution, attribute
from widestream.lens.edits import cut, edit, patch, silence, steer
from widestream.lens.gates import Gate, gates
from widestream.lens.lanes import LaneMixing, lane_mixing
from widestream.lens.look import Seen, look
from widestream.lens.measures import Held, composition, held, logit_lens
from widestream.lens.monitor import Health, check_health, check_stream
from widestream.lens.places import Reader, Writer, find
from widestream.lens.rows import silence_rows
from widestream.lens.shares import exactness
from widestream.lens.summary import Summary, summarize
from widestream.lens.wiring import Keys, Weights, Wiring, flow, keys, weights

__all__ = [
    "Attribution",
    "Gate",
    "Health",
    "Held",
    "Keys",
    "LaneMixing",
    "Reader",
    "Seen",
    "Summary",
    "Weights",
    "Wiring",
    "Writer",
    "attribute",
    "check_health",
    "check_stream",
    "composition",
    "cut",
    "edit",
    "exactness",
    "find",
    "flow",
    "gates",
    "held",
    "keys",
    "lane_mixing",
    "logit_lens",
    "look",
    "patch",
    "silence",
    "silence_rows",
    "steer",
    "summarize",
    "weights",
]
