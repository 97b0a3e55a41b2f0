"""Streams that are one vector, to which blocks add: plain, gated, scaled, or rewritten."""
