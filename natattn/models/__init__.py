"""Sizes and attention types → transformers models."""
