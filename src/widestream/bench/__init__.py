"""Measurements anyone can run: training step, memory, decoding, kernels, data. Behind `widestream bench`."""
