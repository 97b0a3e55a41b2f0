"""Training: the loop, the step, optimizer groups, schedules, checkpoints."""
