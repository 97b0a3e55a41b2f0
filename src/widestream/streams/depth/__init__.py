"""What was written earlier is kept, and read again later: connections along the depth.

    dense_former         averages of all earlier layers, with static weights              dense_former.py
    elc_bert             convex mixtures of all earlier layers, with static weights       elc_bert.py
    mudd                 sums for q, k, v and residual, with every token's own weights    mudd.py
    dca                  sums for q, k, v and residual, with weights per coordinate       dca.py
    attn_res             a softmax over earlier outputs, with a learned query             attn_res.py
    delta_attn_res       the same, added to the stream                                    delta_attn_res.py
    depth_attention      attention over the last states of the token itself               depth_attention.py
    vertical_attention   attention over all earlier layers                                depth_attention.py
    hier_agg             a node merges two layers with what came before them              hier_agg.py
    depth_lstm           an LSTM whose time is the depth, in place of the MLPs            depth_lstm.py

`multiway.py` has what mudd and dca build on, `MultiwayBase`.
"""
