"""Weights that change hands: checkpoints of transformers into runs, runs into runs with another or a wider stream."""
