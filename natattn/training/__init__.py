"""Training of arms on the same batches: `train.py` is the recipe, the other files are what it calls."""
