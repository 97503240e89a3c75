"""The published model, optimizer and training function, as its author's code computes them."""
