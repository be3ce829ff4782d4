"""One loop for stage 1, stage 2, single stage and joint training; moving average of the weights, checkpoints."""
