"""Downstream tasks by lm-evaluation-harness: runs as models of it, and its official tasks on local files.

model.py    a model of this package as one of the harness
tasks.py    official tasks that read local files, and such files out of a package
run.py      tasks on a run folder
"""
