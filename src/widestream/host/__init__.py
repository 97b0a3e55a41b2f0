"""Streams in models that are not ours.

    residual            a stream for branches of any kind: attention, MLP, convolution, ...        stream.py
    attach, detach      a stream in place of the residual adds of a transformers model            attach.py
    save_stream, load_stream    its weights, as a file beside the model's                          saved.py

`config.py` says which branches a model has, `outline.py` what lies between its exchanges, `families.py` which models of
transformers are known. Nothing here knows which stream it is.
"""

