"""`seeds=N`: runs that differ only in their seed, trained as one computation."""
