"""Numbers of comparisons; no words and no pictures.

For others: `groups.Group` (the runs of one model) and `groups.measure`, `pairs.match` (two models), `matched` (curves
at equal resources), `intervals` (t-intervals over seeds), `fits` (power laws and slopes).
"""
