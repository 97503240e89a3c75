"""Architectures as transformers models: one file each, with plain softmax attention."""
