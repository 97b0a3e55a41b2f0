"""Several vectors side by side, lanes, that are mixed on their way past every block.

    hyper_connections   lanes of full width, mixed freely                                 hyper_connections.py
    mhc                 lanes of full width, mixed by doubly stochastic matrices          mhc.py
    generalized_hc      lanes of a part of the width (virtual width networks)             generalized_hc.py
    gated_residual      normed lanes, every channel behind a gate                         gated_residual.py
    altup               one lane goes through the blocks, the others follow               altup.py
    parallel            attention reads one lane, MLPs the other, both write to both      parallel.py

`base.py` has what the first three build on, `LaneBase`.
"""
