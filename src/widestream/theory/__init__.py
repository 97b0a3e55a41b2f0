"""Closed forms: parameters, FLOPs, bytes."""
