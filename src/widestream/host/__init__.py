"""Streams in models that are not ours.

    residual            a stream for branches of any kind: attention, MLP, convolution, ...        stream.py
    attach, detach      a stream in place of the residual adds of a transformers model            attach.py
    save_stream, load_stream    its weights, as a file beside the model's                          saved.py

`config.py` says which branches a model has, `outline.py` what lies between its exchanges, `families.py` which models of
transformers are known. Nothing here knows which stream it is.
"""

from widestream.host.attach import attach, attached_stream, detach
from widestream.host.saved import load_stream, save_stream
from widestream.host.stream import ResidualStream, residual

__all__ = ["ResidualStream", "attach", "attached_stream", "detach", "load_stream", "residual", "save_stream"]
