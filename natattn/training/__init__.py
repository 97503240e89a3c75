"""Arms, the loop that feeds them the same batches, evaluation, checkpoints and guards."""
