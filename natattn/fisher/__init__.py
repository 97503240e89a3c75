"""The Fisher information that attention carries: exact for small cases, Kronecker-factored for training."""

from natattn.fisher.kronecker import FACTORS, FactorName, first_sequences, kronecker_factors
from natattn.fisher.rotary import Rotary

__all__ = ["FACTORS", "FactorName", "Rotary", "first_sequences", "kronecker_factors"]
