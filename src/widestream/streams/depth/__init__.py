"""Streams that keep what was written earlier and add it up anew in front of every reader."""
