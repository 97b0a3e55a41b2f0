"""Run folders: their names and formats, who writes in them, what is read from them, and many runs at a time."""
