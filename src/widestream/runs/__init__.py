"""The one owner of run folders, and of doing many runs.

folder.py           names of everything in a run folder, and reading it; docs/reference/run-folder.md has every key
write.py            how a run folder begins and ends; metrics.py: its rows
checkpoint.py       checkpoints: finding, checking, loading; checkpoint_writer.py: writing; mirror.py: a copy elsewhere
opened.py           `widestream.open`: a run as an object; columns.py: its metrics; model.py, sample.py: its model
read.py             what reports bring together of a run; imports nothing heavy
pool.py             many runs at a time, shared between processes and machines; progress.py: how far they are
"""
