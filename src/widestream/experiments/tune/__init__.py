"""The search of muP settings on a small model."""
