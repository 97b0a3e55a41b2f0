"""Training one run.

loop.py             `train`: the loop
step.py             one optimizer step: micro-batches, averaging, clipping, the check that all is finite
setup.py, begin.py  what must fit together before the first step; how a run folder begins
optim.py, schedule.py, plan.py      parameter groups, rates, the settings in numbers
evaluate.py         held-out loss, of a model and of a run folder
parallel.py         the processes of one run
"""
