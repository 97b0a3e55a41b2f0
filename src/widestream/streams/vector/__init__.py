"""One vector, to which blocks add.

    vector       the plain transformer: x + f(x)                                          plain.py
    rezero       every block behind a gate that starts at zero                            rezero.py
    orthogonal   blocks add what is orthogonal to the vector                              orthogonal.py
    x0_scalars   every layer rescales the stream and mixes the embedding in again         x0_scalars.py
    backout      what early layers wrote is taken out in front of the head                backout.py
    laurel       weighted sums, and a low-rank map of the state and of earlier ones       laurel.py
    scaled       the stream and what is added to it times fixed numbers                   scaled.py
    gains        the same times learned gains, of a layer or of every channel             gains.py
    highway      a gate beside every block                                                highway.py
    review       a gate behind every block that has seen what it put out                 review.py
    siamese_norm a post-norm and a pre-norm stream through the same blocks                siamese_norm.py
    data_lane    tokens enter and leave by a part of the vector, the rest is free         data_lane.py
    deep_delta   every block rewrites the state along a direction instead of adding       deep_delta.py

`plain.py` also has what its relatives build on, `VectorBase`.
"""
