"""Training one run.

loop.py             `train`: the loop
step.py             one optimizer step: micro-batches, averaging, clipping, the check that all is finite
setup.py, begin.py  what must fit together before the first step; how a run folder begins
optim.py, optim_muon.py             parameter groups and rates; Muon on hidden matrices beside AdamW
schedule.py, plan.py                rates over training, the settings in numbers
evaluate.py         held-out loss, of a model and of a run folder
parallel.py         the processes of one run
"""
