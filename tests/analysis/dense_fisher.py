"""Fisher matrices written out, P × P, for tests to compare with."""

import torch


def seeded(seed=0):
    """A generator of its own."""
    return torch.Generator().manual_seed(seed)


def outer_products(rows):
    """C ⊗ x xᵀ of every row, [B, R, P, P]."""
    outer = torch.einsum("brde,brn,brm->brdnem", rows.covariances, rows.inputs, rows.inputs)
    return outer.flatten(4, 5).flatten(2, 3)


def off_diagonal_mean(pairs):
    """Mean over the pairs of different sequences, of one number for each pair, [B, B]."""
    count = len(pairs)
    return (pairs.sum() - pairs.trace()) / (count * (count - 1))
