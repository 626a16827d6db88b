"""Training one trial: the loop, its state, checkpoints, evaluation and what the hardware is asked to do."""
