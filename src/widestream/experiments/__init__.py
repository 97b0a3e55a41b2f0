"""Measurements that are more than a row of training runs: moments, muP, the search of its settings."""
