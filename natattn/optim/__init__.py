"""Optimizers as role → direction × step."""
