"""Attention and what can be observed of it: energies, attention functions for transformers, the probe."""
