"""An outer-product memory: the Residual Matrix Transformer (RMT) and what is changed in it.

    matrix           RMT as published: vectors are stored and retrieved under learned keys      rmt.py
    matrix_carry     rows are mixed or forgotten between writes                                 carry.py
    matrix_delta     a write erases what lies under its key                                     delta.py
    matrix_dense     attention has its dense projections back                                   dense.py
    matrix_dynamic   keys depend on the token                                                   dynamic.py
    matrix_history   writes are kept as vectors, and stored anew for every reader               history.py
    matrix_keys      the MLP has keys in place of matrices                                      keys.py
    matrix_lane      the embedding enters a part of the rows only                               data_lane.py
    matrix_maps      heads are mixed within D_v; the token before is stored too                 maps.py
    matrix_softmax   reads find rows by their content                                           softmax.py

`rmt.py` also has what the others build on, `MatrixBase`.
"""
