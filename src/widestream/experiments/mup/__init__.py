"""The coordinate check of muP."""
