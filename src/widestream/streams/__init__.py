"""Residual streams: the one part of the model that is swapped. One file per stream; base.py is the contract."""

import importlib
import sys
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from widestream.errors import UserError, unknown_name

if TYPE_CHECKING:
    from widestream.streams.base import Stream

KINDS = {
    "vector": "widestream.streams.vector:VectorStream",
    "matrix": "widestream.streams.matrix:MatrixStream",
    "matrix_carry": "widestream.streams.matrix_carry:MatrixCarryStream",
    "matrix_dynamic": "widestream.streams.matrix_dynamic:MatrixDynamicStream",
    "matrix_delta": "widestream.streams.matrix_delta:MatrixDeltaStream",
    "matrix_softmax": "widestream.streams.matrix_softmax:MatrixSoftmaxStream",
    "matrix_history": "widestream.streams.matrix_history:MatrixHistoryStream",
    "matrix_dense": "widestream.streams.matrix_dense:MatrixDenseStream",
    "matrix_keys": "widestream.streams.matrix_keys:MatrixKeysStream",
    "matrix_lane": "widestream.streams.matrix_lane:MatrixLaneStream",
    "hyper_connections": "widestream.streams.hyper_connections:HyperConnectionsStream",
    "mhc": "widestream.streams.mhc:MHCStream",
    "generalized_hc": "widestream.streams.generalized_hc:GeneralizedHCStream",
    "dense_former": "widestream.streams.dense_former:DenseFormerStream",
    "elc_bert": "widestream.streams.elc_bert:ElcBertStream",
    "laurel": "widestream.streams.laurel:LaurelStream",
    "rezero": "widestream.streams.rezero:ReZeroStream",
    "x0_scalars": "widestream.streams.x0_scalars:X0ScalarsStream",
    "data_lane": "widestream.streams.data_lane:DataLaneStream",
    "depth_attention": "widestream.streams.depth_attention:DepthAttentionStream",
    "vertical_attention": "widestream.streams.depth_attention:VerticalAttentionStream",
    "deep_delta": "widestream.streams.deep_delta:DeepDeltaStream",
    "highway": "widestream.streams.highway:HighwayStream",
    "depth_lstm": "widestream.streams.depth_lstm:DepthLSTMStream",
    "hier_agg": "widestream.streams.hier_agg:HierAggStream",
    "attn_res": "widestream.streams.attn_res:AttnResStream",
    "mudd": "widestream.streams.mudd:MuddStream",
    "dca": "widestream.streams.dca:DcaStream",
}


def kinds() -> dict[str, str]:
    """All kinds by name: those here, and those of installed packages (entry points of group widestream.streams)."""
    found = {point.name: point.value for point in entry_points(group="widestream.streams")}
    return found | KINDS


def stream_class(kind: str) -> "type[Stream]":
    """The class of a stream kind: a name from `kinds`, or `module:Class` of the user's own.

    A module of the user's own is also looked for in the working directory.

    Raises:
        UserError: unknown kind (suggests the nearest), or a module or class that cannot be found.
    """
    target = KINDS[kind] if kind in KINDS else kinds().get(kind, kind)
    module, colon, name = target.partition(":")
    if not colon:
        raise unknown_name(f"stream kind {kind!r}", kind, [*kinds(), "module:Class of your own"])
    try:
        return getattr(_import(module), name)
    except (ImportError, AttributeError) as error:
        raise UserError(f"The stream {kind!r} cannot be loaded: {error}.") from error


def config_class(kind: str) -> type:
    """The configuration dataclass of a stream kind."""
    return stream_class(kind).Config


def _import(module: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module.partition(".")[0]:
            raise  # the module is there; something that it needs is not
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        return importlib.import_module(module)
    finally:
        sys.path.remove(here)
