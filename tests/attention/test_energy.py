"""Energy statistics against loops in float64 that are written straight from the definitions."""

import math

import pytest
import torch

from natattn.attention.energy import energy_sums, systematic_rows

BATCH, HEADS, LENGTH, HEAD_DIM = 2, 4, 12, 5


def _padding_mask() -> torch.Tensor:
    """Causal, and in the second sequence the first three keys are padding: some rows have no key at all."""
    allowed = torch.ones(LENGTH, LENGTH).tril().bool().repeat(BATCH, 1, 1, 1)
    allowed[1, :, :, :3] = False
    return allowed


def _additive(mask: torch.Tensor, value: float) -> torch.Tensor:
    return torch.zeros(mask.shape).masked_fill(~mask, value)


CASES = {
    "causal": {"is_causal": True, "mask": None},
    "bidirectional": {"is_causal": False, "mask": None},
    "padded": {"is_causal": True, "mask": _padding_mask()},
    "additive -inf": {"is_causal": True, "mask": _additive(_padding_mask(), -math.inf)},
    "additive minimum": {"is_causal": True, "mask": _additive(_padding_mask(), torch.finfo(torch.float32).min)},
    "additive -1e9": {"is_causal": True, "mask": _additive(_padding_mask(), -1e9)},
    "sliding window": {"is_causal": True, "mask": torch.ones(1, 1, LENGTH, LENGTH).tril().triu(-3).bool()},
}


def _reference(query, key, allowed, scaling):
    """Means per head by explicit loops in float64."""
    groups = query.shape[1] // key.shape[1]
    results = []
    for head in range(query.shape[1]):
        energies, entropies = [], []
        for batch in range(query.shape[0]):
            for row in range(query.shape[2]):
                keys = [j for j in range(key.shape[2]) if allowed[batch, row, j]]
                scores = [
                    float(query[batch, head, row].double() @ key[batch, head // groups, j].double()) for j in keys
                ]
                scores = [scaling * score for score in scores]
                energies += scores
                if scores:
                    normaliser = sum(math.exp(score) for score in scores)
                    pattern = [math.exp(score) / normaliser for score in scores]
                    entropies.append(-sum(a * math.log(a) for a in pattern))
        count = len(energies)
        results.append(
            (
                sum(energies) / count,
                sum(map(abs, energies)) / count,
                sum(entropies) / len(entropies),
                count,
                len(entropies),
            )
        )
    return results


@pytest.mark.parametrize("key_heads", [HEADS, 2, 1])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_exact_statistics_match_the_definitions(case, key_heads):
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(BATCH, HEADS, LENGTH, HEAD_DIM, generator=generator) * 3
    key = torch.randn(BATCH, key_heads, LENGTH, HEAD_DIM, generator=generator)
    mask = case["mask"]
    if mask is None:
        allowed = torch.ones(BATCH, LENGTH, LENGTH).bool()
        allowed = allowed.tril() if case["is_causal"] else allowed
    else:
        allowed = (mask if mask.dtype == torch.bool else mask > -1e8)[:, 0].expand(BATCH, LENGTH, LENGTH)

    sums = energy_sums(query, key, scaling=0.4, attention_mask=mask, is_causal=case["is_causal"], with_entropy=True)

    expected = _reference(query, key, allowed, 0.4)
    actual = zip(sums.mean_energy, sums.mean_absolute_energy, sums.mean_entropy, strict=True)
    for (energy, absolute, entropy), (energy64, absolute64, entropy64, pairs, rows) in zip(
        actual, expected, strict=True
    ):
        assert float(energy) == pytest.approx(energy64, abs=1e-5)
        assert float(absolute) == pytest.approx(absolute64, rel=1e-5)
        assert float(entropy) == pytest.approx(entropy64, abs=1e-5)
        assert float(sums.pairs) == pairs
        assert float(sums.rows) == rows


def test_cross_attention_lengths_may_differ():
    query, key = torch.randn(2, 3, 5, 4), torch.randn(2, 3, 9, 4)
    sums = energy_sums(query, key, scaling=0.5, is_causal=False)
    energy = 0.5 * query @ key.transpose(-1, -2)
    torch.testing.assert_close(sums.mean_absolute_energy, energy.abs().mean((0, 2, 3)))
    assert float(sums.pairs) == 2 * 5 * 9


@pytest.mark.parametrize(("length", "count"), [(12, 3), (13, 5), (7, 7), (100, 32), (5, 1)])
def test_every_row_is_sampled_equally_often(length, count):
    offsets = (torch.arange(1000) + 0.5) / 1000
    hits = torch.zeros(length)
    for offset in offsets:
        rows = systematic_rows(length, count, float(offset), torch.device("cpu"))
        assert len(set(rows.tolist())) == count
        hits[rows] += 1
    torch.testing.assert_close(hits / 1000, torch.full((length,), count / length), atol=2e-3, rtol=0)


@pytest.mark.parametrize("mask", [None, CASES["padded"]["mask"]], ids=["causal", "padded"])
def test_sampled_sums_are_unbiased(mask):
    generator = torch.Generator().manual_seed(1)
    query, key = (torch.randn(BATCH, HEADS, LENGTH, HEAD_DIM, generator=generator) for _ in range(2))
    exact = energy_sums(query, key, scaling=1.0, attention_mask=mask, with_entropy=True)
    draws = [
        energy_sums(query, key, scaling=1.0, attention_mask=mask, row_count=5, offset=float(offset), with_entropy=True)
        for offset in torch.rand(2000, generator=generator)
    ]
    for name in ("energy", "absolute_energy", "entropy", "pairs"):
        sample = torch.stack([getattr(draw, name) for draw in draws]).double()
        error = (sample.mean(0) - getattr(exact, name).double()).abs()
        standard_error = sample.std(0) / len(draws) ** 0.5
        assert bool((error <= 4 * standard_error + 1e-4 * sample.abs().mean(0)).all()), name


def test_sampling_varies_with_the_offset():
    query, key = torch.randn(1, 2, 16, 4), torch.randn(1, 2, 16, 4)
    first, second = (energy_sums(query, key, scaling=1.0, row_count=2, offset=o).absolute_energy for o in (0.1, 0.9))
    assert not torch.equal(first, second)


def test_half_precision_inputs_are_computed_in_float32():
    query, key = (torch.randn(1, 2, 16, 8).bfloat16() for _ in range(2))
    sums = energy_sums(query, key, scaling=1.0)
    expected = energy_sums(query.float(), key.float(), scaling=1.0)
    assert torch.equal(sums.absolute_energy, expected.absolute_energy)
