"""The Fisher information that attention carries: exact for small cases, Kronecker-factored for training."""

from natattn.fisher.kronecker import FACTORS, FactorName, first_sequences, kronecker_factors
from natattn.fisher.rotary import Rotary
from natattn.fisher.solver import KroneckerFactors

__all__ = ["FACTORS", "FactorName", "KroneckerFactors", "Rotary", "first_sequences", "kronecker_factors"]
