"""Text: corpora, tokenizers, packing and batches."""
