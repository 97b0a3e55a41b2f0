"""Streams that are an outer-product memory: the Residual Matrix Transformer and its relatives."""
