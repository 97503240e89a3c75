"""Verdicts on the theorems, and that their counterexamples can be pasted and do break them."""

import math

import pytest
import torch

from natattn.analysis.questions.theorems import THEOREMS, Check, Theorems, check_theorem, verdict
from natattn.analysis.verdicts import AnalysisResult

REFUTED = {
    "P1 whole": False, "P1 per head": True, "P2": True, "P3": True, "P4": True, "P5 output": True, "P5 key": False,
    "P6 row": False, "P6 total": True, "D1": False, "D2": False, "D3'": True, "D4'": True, "D5'": True, "F3": True,
}  # fmt: skip


def pasted(claim, seed=0):
    """Run the counterexample of a claim as Python code."""
    names: dict = {"torch": torch}
    exec(check_theorem(claim, seed=seed).counterexample, names)
    return names


@pytest.mark.parametrize("claim", THEOREMS)
@pytest.mark.parametrize("seed", [0, 1])
def test_outcome_and_counterexample(claim, seed):
    check = check_theorem(claim, seed=seed)
    assert check.is_refuted == REFUTED[claim]
    assert check.cases >= 3
    assert math.isfinite(check.worst)
    assert (check.worst > 1e-9) == check.is_refuted
    tensors = [value for value in pasted(claim, seed).values() if isinstance(value, torch.Tensor)]
    assert bool(tensors) == check.is_refuted
    assert all(tensor.dtype == torch.float64 for tensor in tensors)


def test_an_unknown_theorem():
    with pytest.raises(KeyError):
        check_theorem("P99")


def searched(*checks):
    made = tuple(Check(claim, f"statement of {claim}", 0.5, 30, "because", code) for claim, code in checks)
    return AnalysisResult("models", "text", None, None, {"theorems": Theorems(made)})


def test_a_counterexample_refutes_and_a_proof_supports():
    code = "A = torch.tensor([[0.5, 0.5], [0.5, 0.5]], dtype=torch.float64)\nx = torch.tensor(1.0, dtype=torch.float64)"
    models = [searched(("P3", code), ("P6 row", ""), ("P4", ""), ("D1", code), ("D3'", code))] * 2
    findings, (table,) = verdict("t", models)
    assert [(finding.claim, finding.verdict, finding.count) for finding in findings] == [
        ("P3", "refuted", 30), ("P6", "supported", 30), ("P4", "inconclusive", 30), ("D3'", "refuted", 30),
    ]  # fmt: skip
    assert findings[0].note == "because; smallest counterexample: A = [[0.5, 0.5], [0.5, 0.5]], x = 1.0"
    assert "no counterexample in 30 cases" in findings[1].note
    assert [row[0] for row in table.rows] == ["P3", "P6 row", "P4", "D3'"]


def test_a_counterexample_of_any_search_is_enough():
    (found,), _ = verdict("t", [searched(("P3", "")), searched(("P3", "A = 1"))])
    assert found.verdict == "refuted"


def test_the_smallest_counterexamples_by_hand():
    states, query, key = (pasted("P1 per head")[name] for name in ("X", "W_Q", "W_K"))
    heads, width, head_dim = query.shape
    assert torch.allclose(query.flatten(1).norm(dim=1) ** 2, torch.tensor(float(width), dtype=torch.float64))
    energies = (states @ query) @ (states @ key).mT / math.sqrt(head_dim)
    assert energies.square().sum() > width * heads * states.norm() ** 4
    assert heads == 2  # one head cannot break it

    pattern = pasted("P3")["A"]
    assert pattern.shape == (2, 2)
    assert torch.linalg.eigvalsh(pattern @ pattern.mT)[0] < 0.5

    pattern = pasted("P6 total")["A"]
    assert torch.special.entr(pattern).sum() > pattern.square().sum() / 2 + math.log(len(pattern))

    states = pasted("P2")["X"]
    patterns = [torch.softmax(scale**2 * states @ states.mT / math.sqrt(states.shape[1]), -1) for scale in (1, 2)]
    assert not torch.allclose(*patterns)

    row = pasted("D4'")["a"]
    assert torch.special.entr(row).sum() < 1e-6
