"""Which kinds of stream there are, by name. Nothing else is known here: a stream is imported when it is asked for."""

import importlib
import sys
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from widestream.errors import UserError, shown, unknown_name
from widestream.recipe.stream import StreamConfig

OWN_KINDS: dict[str, str] = {
    "vector": "widestream.streams.vector.plain:VectorStream",
    "matrix": "widestream.streams.matrix.rmt:MatrixStream",
    "altup": "widestream.streams.lanes.altup:AltUpStream",
    "attn_res": "widestream.streams.depth.attn_res:AttnResStream",
    "backout": "widestream.streams.vector.backout:BackoutStream",
    "data_lane": "widestream.streams.vector.data_lane:DataLaneStream",
    "dca": "widestream.streams.depth.dca:DcaStream",
    "deep_delta": "widestream.streams.vector.deep_delta:DeepDeltaStream",
    "delta_attn_res": "widestream.streams.depth.delta_attn_res:DeltaAttnResStream",
    "dense_former": "widestream.streams.depth.dense_former:DenseFormerStream",
    "depth_attention": "widestream.streams.depth.depth_attention:DepthAttentionStream",
    "depth_lstm": "widestream.streams.depth.depth_lstm:DepthLSTMStream",
    "elc_bert": "widestream.streams.depth.elc_bert:ElcBertStream",
    "gains": "widestream.streams.vector.gains:GainsStream",
    "gated_residual": "widestream.streams.lanes.gated_residual:GatedResidualStream",
    "generalized_hc": "widestream.streams.lanes.generalized_hc:GeneralizedHCStream",
    "hier_agg": "widestream.streams.depth.hier_agg:HierAggStream",
    "highway": "widestream.streams.vector.highway:HighwayStream",
    "hyper_connections": "widestream.streams.lanes.hyper_connections:HyperConnectionsStream",
    "laurel": "widestream.streams.vector.laurel:LaurelStream",
    "matrix_carry": "widestream.streams.matrix.carry:MatrixCarryStream",
    "matrix_delta": "widestream.streams.matrix.delta:MatrixDeltaStream",
    "matrix_dense": "widestream.streams.matrix.dense:MatrixDenseStream",
    "matrix_dynamic": "widestream.streams.matrix.dynamic:MatrixDynamicStream",
    "matrix_history": "widestream.streams.matrix.history:MatrixHistoryStream",
    "matrix_keys": "widestream.streams.matrix.keys:MatrixKeysStream",
    "matrix_lane": "widestream.streams.matrix.data_lane:MatrixLaneStream",
    "matrix_maps": "widestream.streams.matrix.maps:MatrixMapsStream",
    "matrix_softmax": "widestream.streams.matrix.softmax:MatrixSoftmaxStream",
    "mhc": "widestream.streams.lanes.mhc:MHCStream",
    "mudd": "widestream.streams.depth.mudd:MuddStream",
    "orthogonal": "widestream.streams.vector.orthogonal:OrthogonalStream",
    "parallel": "widestream.streams.lanes.parallel:ParallelStream",
    "review": "widestream.streams.vector.review:ReviewStream",
    "rezero": "widestream.streams.vector.rezero:ReZeroStream",
    "scaled": "widestream.streams.vector.scaled:ScaledStream",
    "siamese_norm": "widestream.streams.vector.siamese_norm:SiameseNormStream",
    "vertical_attention": "widestream.streams.depth.depth_attention:VerticalAttentionStream",
    "x0_scalars": "widestream.streams.vector.x0_scalars:X0ScalarsStream",
}
"""The kinds of this package, as `module:Class`. A new stream is a file, a line here, and a recipe."""


def kinds() -> dict[str, str]:
    """All kinds by name: those here, and those of installed packages (entry points of group widestream.streams)."""
    return {point.name: point.value for point in entry_points(group="widestream.streams")} | OWN_KINDS


def load_kind(kind: str) -> Any:
    """The class of a stream kind: a name from `kinds`, or `module:Class` of the user's own.

    A module of the user's own is also looked for in the working directory.

    Raises:
        UserError: unknown kind (suggests the nearest), or a module or class that cannot be found.
    """
    target = OWN_KINDS.get(kind) or kinds().get(kind, kind)
    module, colon, name = target.partition(":")
    if not colon:
        raise unknown_name(f"stream kind {shown(kind)!r}", kind, [*kinds(), "module:Class of your own"])
    try:
        found = getattr(_import(module), name)
    except Exception as error:  # a module of the user's own may fail in any way
        raise UserError(f"The stream {shown(kind)} cannot be loaded: {type(error).__name__}: {error}.") from error
    config = getattr(found, "Config", None)
    if not isinstance(config, type) or not issubclass(config, StreamConfig):
        raise UserError(f"{shown(kind)} is no stream: a stream is a class with a `Config` that extends StreamConfig.")
    return found


def settings_class(kind: str) -> type[StreamConfig]:
    """The dataclass that a stream kind is set by.

    Raises:
        UserError: see `load_kind`.
    """
    return load_kind(kind).Config


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
