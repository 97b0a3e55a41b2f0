"""Run folders: their names and formats, metrics and checkpoints, what is read from them, and many runs at a time."""
