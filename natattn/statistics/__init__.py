"""Paired comparisons and performance profiles."""
