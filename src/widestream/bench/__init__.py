"""Measurements anyone can run, behind `widestream bench`: candidates take turns in one process.

step.py, memory.py, decode.py, kernels.py, data.py      one measurement each
models.py           the models that are measured; paired.py: taking turns
record.py, plots.py, tables.py      what a measurement leaves: JSON with machine and versions, pictures, a table
"""
