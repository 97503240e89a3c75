"""Attention and what can be observed of it: energies, the attention functions registered with transformers, the probe."""
