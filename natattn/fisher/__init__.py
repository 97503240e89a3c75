"""The Fisher information that attention carries: Kronecker factors for training, and the dense form for small cases."""

from natattn.fisher.decomposition import attention_fisher, score_fisher
from natattn.fisher.kronecker import FACTORS, FactorName, Rotary, first_sequences, kronecker_factors
from natattn.fisher.roots import damped_inverse, inverse_cholesky, inverse_square_root

__all__ = [
    "FACTORS",
    "FactorName",
    "Rotary",
    "attention_fisher",
    "damped_inverse",
    "first_sequences",
    "inverse_cholesky",
    "inverse_square_root",
    "kronecker_factors",
    "score_fisher",
]
