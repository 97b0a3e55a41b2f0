"""Streams of several lanes that are mixed on their way past every block."""
