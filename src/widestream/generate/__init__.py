"""Sampling text with a KV cache."""
