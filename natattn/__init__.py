"""natattn: transformer training experiments in which attention informs the optimizer."""
