"""Verdicts on the theorems, and that their counterexamples can be pasted and do break them."""

import math

import pytest
import torch

from natattn.analysis.theorems import THEOREMS, check_theorem, check_theorems

VERDICTS = {
    "P1 whole": "supported", "P1 per head": "refuted", "P2": "refuted", "P3": "refuted", "P4": "refuted",
    "P5 output": "refuted", "P5 key": "supported", "P6 row": "supported", "P6 total": "refuted", "D1": "supported",
    "D2": "supported", "D3'": "refuted", "D4'": "refuted", "D5'": "refuted", "F3": "refuted",
}  # fmt: skip


@pytest.mark.parametrize("claim", THEOREMS)
@pytest.mark.parametrize("seed", [0, 1])
def test_verdict_and_counterexample(claim, seed):
    check = check_theorem(claim, seed=seed)
    assert check.verdict == VERDICTS[claim]
    assert check.cases >= 3
    assert math.isfinite(check.worst)
    assert (check.counterexample is None) == (check.verdict == "supported")
    assert (check.worst > 1e-9) == (check.verdict == "refuted")
    pasted: dict = {"torch": torch}
    exec(check.paste(), pasted)
    for name, value in (check.counterexample or {}).items():
        torch.testing.assert_close(pasted[name], value.double())


def test_all_and_one_that_is_unknown():
    assert [check.claim for check in check_theorems()] == list(THEOREMS)
    with pytest.raises(KeyError):
        check_theorem("P99")


def counterexample(claim):
    return check_theorem(claim).counterexample


def test_the_smallest_counterexamples_by_hand():
    states, query, key = (counterexample("P1 per head")[name] for name in ("X", "W_Q", "W_K"))
    heads, width, head_dim = query.shape
    assert torch.allclose(query.flatten(1).norm(dim=1) ** 2, torch.tensor(float(width), dtype=torch.float64))
    energies = (states @ query) @ (states @ key).mT / math.sqrt(head_dim)
    assert energies.square().sum() > width * heads * states.norm() ** 4
    assert heads == 2  # one head cannot break it

    pattern = counterexample("P3")["A"]
    assert pattern.shape == (2, 2)
    assert torch.linalg.eigvalsh(pattern @ pattern.mT)[0] < 0.5

    pattern = counterexample("P6 total")["A"]
    assert torch.special.entr(pattern).sum() > pattern.square().sum() / 2 + math.log(len(pattern))

    states = counterexample("P2")["X"]
    patterns = [torch.softmax(scale**2 * states @ states.mT / math.sqrt(states.shape[1]), -1) for scale in (1, 2)]
    assert not torch.allclose(*patterns)

    row = counterexample("D4'")["a"]
    assert torch.special.entr(row).sum() < 1e-6
