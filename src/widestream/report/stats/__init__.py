"""Numbers: groups of runs, matched differences, intervals, fits."""
