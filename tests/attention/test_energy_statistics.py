"""Every statistic, under every kind of mask, by every method, against loops in float64 written from the definitions."""

import math

import pytest
import torch
from dense_oracle import dense_statistics
from torch.utils._python_dispatch import TorchDispatchMode

from natattn.attention import quantities as table
from natattn.attention.energy import AttentionInputs, systematic_rows
from natattn.attention.quantities import BIASED_WHEN_SAMPLED, QUANTITIES
from natattn.attention.statistics import EnergyStatistics, sampled_statistics, streaming_statistics

BATCH, HEADS, LENGTH, HEAD_DIM = 2, 4, 12, 5
ALL = tuple(QUANTITIES)


def _causal() -> torch.Tensor:
    return torch.ones(LENGTH, LENGTH).tril().bool().repeat(BATCH, 1, 1, 1)


def _left_padded() -> torch.Tensor:
    """In the second sequence the first three tokens are padding: their rows have no key at all."""
    allowed = _causal()
    allowed[1, :, :, :3] = False
    return allowed


def _right_padded() -> torch.Tensor:
    allowed = _causal()
    allowed[1, :, :, 8:] = False
    allowed[1, :, 8:] = False
    return allowed


def _window() -> torch.Tensor:
    return _left_padded() & torch.ones(LENGTH, LENGTH).triu(-3).bool()


def _per_head() -> torch.Tensor:
    return torch.stack([torch.ones(LENGTH, LENGTH).tril().triu(-width).bool() for width in (1, 3, 5, 11)])[None]


def _additive(mask: torch.Tensor, value: float) -> torch.Tensor:
    return torch.zeros(mask.shape).masked_fill(~mask, value)


def _alibi() -> torch.Tensor:
    distance = torch.arange(LENGTH) - torch.arange(LENGTH)[:, None]
    slopes = torch.tensor([0.5, 0.25, 0.125, 0.0625])[:, None, None]
    return (slopes * distance).masked_fill(~_causal()[0], -math.inf)[None]


def _cross_mask() -> torch.Tensor:
    allowed = torch.ones(BATCH, 1, 5, 9).bool()
    allowed[1, :, :, 6:] = False
    return allowed


def _bias() -> torch.Tensor:
    return torch.randn(1, HEADS, LENGTH, LENGTH, generator=torch.Generator().manual_seed(5))


CASES: dict[str, dict] = {
    "causal": {},
    "bidirectional": {"is_causal": False},
    "left padded": {"attention_mask": _left_padded()},
    "right padded": {"attention_mask": _right_padded()},
    "bidirectional padded": {"attention_mask": _left_padded()[:, :, -1:].expand(-1, -1, LENGTH, -1)},
    "one mask row for all": {"attention_mask": _left_padded()[:, :, -1:]},
    "additive -inf": {"attention_mask": _additive(_left_padded(), -math.inf)},
    "additive minimum": {"attention_mask": _additive(_left_padded(), torch.finfo(torch.float32).min)},
    "additive -1e9": {"attention_mask": _additive(_left_padded(), -1e9)},
    "additive bias": {"attention_mask": _alibi()},
    "sliding window, left padded": {"attention_mask": _window()},
    "a mask for each head": {"attention_mask": _per_head()},
    "cross": {"lengths": (5, 9), "is_causal": False},
    "cross padded": {"lengths": (5, 9), "attention_mask": _cross_mask()},
    "causal, keys beyond the queries": {"lengths": (5, 9)},
    "causal, queries beyond the keys": {"lengths": (9, 5)},
    "decoding with a cache": {"lengths": (1, 9)},
    "chunk of a prompt with a cache": {"lengths": (4, LENGTH), "attention_mask": _causal()[:, :, -4:]},
    "soft-cap": {"softcap": 1.5},
    "position bias": {"position_bias": _bias()},
    "soft-cap, position bias, padded": {"softcap": 1.5, "position_bias": _bias(), "attention_mask": _left_padded()},
    "temperature": {"temperature": 0.6},
    "temperature per head, padded": {
        "temperature": torch.tensor([0.5, 1.0, 2.0, 4.0]).double(), "attention_mask": _left_padded()
    },
}  # fmt: skip


def _inputs(key_heads: int = HEADS, lengths: tuple[int, int] = (LENGTH, LENGTH), **options) -> AttentionInputs:
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(BATCH, HEADS, lengths[0], HEAD_DIM, generator=generator, dtype=torch.float64) * 3
    key = torch.randn(BATCH, key_heads, lengths[1], HEAD_DIM, generator=generator, dtype=torch.float64)
    return AttentionInputs(query, key, scaling=0.4, **options)


def _allowed_keys(inputs: AttentionInputs, batch: int, head: int, row: int) -> list[int]:
    mask = inputs.attention_mask
    if mask is None:
        causal = inputs.is_causal and inputs.length > 1
        return [j for j in range(inputs.key_length) if not causal or j <= row]
    mask = mask.expand(BATCH, HEADS, inputs.length, inputs.key_length)[batch, head, row]
    allowed = mask if mask.dtype == torch.bool else mask > -1e8
    return [j for j in range(inputs.key_length) if allowed[j]]


def _score(inputs: AttentionInputs, batch: int, head: int, row: int, key: int) -> float:
    group = head // (HEADS // inputs.key.shape[1])
    score = inputs.scaling * float(inputs.query[batch, head, row] @ inputs.key[batch, group, key])
    if inputs.softcap:
        score = inputs.softcap * math.tanh(score / inputs.softcap)
    if inputs.position_bias is not None:
        score += float(inputs.position_bias[0, head, row, key])
    mask = inputs.attention_mask
    if mask is not None and mask.dtype != torch.bool:
        score += float(mask.expand(BATCH, HEADS, -1, -1)[batch, head, row, key])
    return score


def _reference(inputs: AttentionInputs, head: int) -> dict[str, float]:
    """All quantities of one head by explicit loops."""
    temperature = inputs.temperature
    T = float(temperature[head]) if isinstance(temperature, torch.Tensor) else temperature
    offset = inputs.key_length - inputs.length
    if inputs.attention_mask is None and inputs.is_causal and inputs.length > 1:
        offset = 0
    energies: list[float] = []
    rows: dict[str, list[float]] = {name: [] for name, quantity in QUANTITIES.items() if quantity.over == "rows"}
    for batch in range(BATCH):
        keys_of_rows = [_allowed_keys(inputs, batch, head, row) for row in range(inputs.length)]
        first_token = min((keys[0] for keys in keys_of_rows if keys), default=0)
        for row, keys in enumerate(keys_of_rows):
            if not keys:
                continue
            scores = [_score(inputs, batch, head, row, key) for key in keys]
            energies += scores
            partition = sum(math.exp(score / T) for score in scores)
            pattern = [math.exp(score / T) / partition for score in scores]
            mean = sum(a * e for a, e in zip(pattern, scores, strict=True))
            entropy = -sum(a * math.log(a) for a in pattern)
            rows["free_energy"].append(-T * math.log(partition))
            rows["internal_energy"].append(-mean)
            rows["entropy"].append(entropy)
            rows["heat_capacity"].append(sum(a * (e - mean) ** 2 for a, e in zip(pattern, scores, strict=True)) / T**2)
            rows["effective_support"].append(math.exp(entropy))
            rows["participation"].append(sum(a * a for a in pattern))
            rows["attention_distance"].append(
                sum(a * abs(row + offset - key) for a, key in zip(pattern, keys, strict=True))
            )
            rows["sink_mass"].append(sum(a for a, key in zip(pattern, keys, strict=True) if key == first_token))
    pairs = len(energies)
    mean = sum(energies) / pairs
    return {
        "mean_energy": mean,
        "mean_absolute_energy": sum(map(abs, energies)) / pairs,
        "mean_square_energy": sum(e * e for e in energies) / pairs,
        "standard_deviation": math.sqrt(sum((e - mean) ** 2 for e in energies) / pairs),
        "maximum": max(energies),
        **{name: sum(values) / len(values) for name, values in rows.items()},
        "pairs": pairs,
        "rows": len(rows["entropy"]),
    }


METHODS = {
    "dense": lambda inputs, names: dense_statistics(inputs, names),
    "streaming": lambda inputs, names: streaming_statistics(inputs, names),
    "streaming in chunks of 5": lambda inputs, names: streaming_statistics(inputs, names, chunk_rows=5),
    "sampled, all rows": lambda inputs, names: sampled_statistics(inputs, names, row_count=LENGTH, offset=0.3),
}


@pytest.mark.parametrize("key_heads", [HEADS, 2])
@pytest.mark.parametrize("case", CASES)
def test_every_statistic_by_every_method_matches_the_definitions(case, key_heads):
    inputs = _inputs(key_heads, **CASES[case])
    expected = [_reference(inputs, head) for head in range(HEADS)]
    for method, measure in METHODS.items():
        statistics = measure(inputs, ALL)
        assert statistics.quantities == ALL
        for name in ALL:
            values = torch.tensor([head[name] for head in expected], dtype=torch.float64)
            torch.testing.assert_close(
                statistics[name], values, rtol=1e-10, atol=1e-10, msg=lambda m, n=name, k=method: f"{k}, {n}: {m}"
            )
        assert statistics.pairs.expand(HEADS).tolist() == [head["pairs"] for head in expected], method
        assert statistics.rows.expand(HEADS).tolist() == [head["rows"] for head in expected], method


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("row_count", [1, 3, 5])
def test_the_expectation_over_all_samples_is_the_exact_value(case, row_count):
    inputs = _inputs(2, **CASES[case])
    exact = dense_statistics(inputs, ALL)
    # The sample changes only where the offset passes a multiple of 1/L: the midpoints between are all samples.
    offsets = (torch.arange(inputs.length) + 0.5) / inputs.length
    draws = [sampled_statistics(inputs, ALL, row_count=row_count, offset=float(offset)) for offset in offsets]
    for name in set(ALL) - BIASED_WHEN_SAMPLED:
        expectation = torch.stack([draw[name] for draw in draws]).mean(0)
        torch.testing.assert_close(expectation, exact[name], rtol=1e-9, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")
    assert all(bool((draw["maximum"] <= exact["maximum"] + 1e-9).all()) for draw in draws)


def test_the_mean_over_random_draws_is_within_its_standard_error():
    inputs = _inputs(**CASES["left padded"])
    exact = dense_statistics(inputs, ALL)
    offsets = torch.rand(600, generator=torch.Generator().manual_seed(1))
    draws = [sampled_statistics(inputs, ALL, row_count=5, offset=float(offset)) for offset in offsets]
    for name in set(ALL) - BIASED_WHEN_SAMPLED:
        sample = torch.stack([draw[name] for draw in draws])
        error = (sample.mean(0) - exact[name]).abs()
        assert bool((error <= 4 * sample.std(0) / len(draws) ** 0.5).all()), name


def test_biased_quantities_are_marked_and_really_biased():
    inputs = _inputs(**CASES["causal"])
    exact = dense_statistics(inputs, ALL)
    offsets = (torch.arange(LENGTH) + 0.5) / LENGTH
    draws = [sampled_statistics(inputs, ALL, row_count=3, offset=float(offset)) for offset in offsets]
    assert (
        {name for name in ALL if draws[0].is_biased(name)} == BIASED_WHEN_SAMPLED == {"maximum", "standard_deviation"}
    )
    assert not any(exact.is_biased(name) for name in ALL)
    for name in BIASED_WHEN_SAMPLED:
        expectation = torch.stack([draw[name] for draw in draws]).mean(0)
        assert bool(((expectation - exact[name]).abs() > 0.003 * exact[name].abs()).all()), name


@pytest.mark.parametrize("case", ["causal", "bidirectional", "cross", "causal, queries beyond the keys"])
@pytest.mark.parametrize("key_heads", [HEADS, 2])
def test_the_closed_form_of_the_energy_sum(case, key_heads):
    inputs = _inputs(key_heads, **CASES[case])
    with _LargestTensor() as largest:
        statistics = streaming_statistics(inputs, ("mean_energy",))
    torch.testing.assert_close(statistics["mean_energy"], dense_statistics(inputs, ("mean_energy",))["mean_energy"])
    assert largest.elements <= BATCH * HEADS * inputs.length * HEAD_DIM


class _LargestTensor(TorchDispatchMode):
    """Elements of the largest tensor that any operation returned."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and "expand" not in str(func):
            self.elements = max(self.elements, result.numel())
        return result


@pytest.mark.parametrize(
    ("measure", "rows"),
    [
        (lambda inputs: streaming_statistics(inputs, ALL, chunk_rows=16), 16),
        (lambda inputs: sampled_statistics(inputs, ALL, row_count=8, offset=0.5), 8),
    ],
    ids=["streaming", "sampled"],
)
def test_no_method_but_dense_holds_a_whole_matrix(measure, rows):
    inputs = AttentionInputs(torch.randn(1, 2, 256, 8), torch.randn(1, 2, 256, 8), scaling=1.0)
    with _LargestTensor() as largest:
        measure(inputs)
    assert largest.elements <= 2 * rows * 256
    with _LargestTensor() as largest:
        dense_statistics(inputs, ALL)
    assert largest.elements == 2 * 256 * 256


def test_only_what_is_asked_for_is_computed(monkeypatch):
    def refuse(rows):
        raise AssertionError("not asked for")

    kept = table.TERMS["absolute_energy"]
    monkeypatch.setattr(
        "natattn.attention.statistics.TERMS", {**dict.fromkeys(table.TERMS, refuse), "absolute_energy": kept}
    )
    inputs = _inputs()
    for measure in list(METHODS.values())[1:]:
        statistics = measure(inputs, ("mean_absolute_energy",))
        assert statistics.quantities == ("mean_absolute_energy",)
        with pytest.raises(KeyError, match="entropy was not asked for; recorded are mean_absolute_energy"):
            statistics["entropy"]


def test_unknown_quantities_are_named():
    with pytest.raises(ValueError, match="unknown attention quantity 'entropi'; there are mean_energy"):
        streaming_statistics(_inputs(), ("entropi",))
    with pytest.raises(KeyError, match="unknown attention quantity 'entropi'"):
        streaming_statistics(_inputs(), ("entropy",))["entropi"]


def test_statistics_of_two_batches_add_up():
    inputs = _inputs(**CASES["left padded"])
    parts = [
        streaming_statistics(
            AttentionInputs(
                inputs.query[[b]],
                inputs.key[[b]],
                scaling=0.4,
                attention_mask=CASES["left padded"]["attention_mask"][[b]],
            ),
            ALL,
        )
        for b in range(BATCH)
    ]
    total: EnergyStatistics = parts[0] + parts[1]
    whole = dense_statistics(inputs, ALL)
    for name in ALL:
        torch.testing.assert_close(total[name], whole[name])


@pytest.mark.parametrize("scale", [1e-3, 1.0, 300.0])
def test_float32_keeps_its_digits_from_flat_to_peaked_patterns(scale):
    inputs = _inputs()
    query = (inputs.query * scale).float()
    exact = dense_statistics(AttentionInputs(query.double(), inputs.key.float().double(), scaling=0.4), ALL)
    fast = streaming_statistics(AttentionInputs(query, inputs.key.float(), scaling=0.4), ALL)
    for name in ALL:
        torch.testing.assert_close(fast[name].double(), exact[name], rtol=2e-5, atol=1e-6 * scale)


def test_half_precision_inputs_are_computed_in_float32():
    query, key = (torch.randn(1, 2, 16, 8).bfloat16() for _ in range(2))
    half = streaming_statistics(AttentionInputs(query, key, scaling=1.0), ALL)
    full = streaming_statistics(AttentionInputs(query.float(), key.float(), scaling=1.0), ALL)
    for name in ALL:
        assert torch.equal(half[name], full[name])


@pytest.mark.parametrize(("length", "count"), [(12, 3), (13, 5), (7, 7), (100, 32), (5, 1)])
def test_every_row_is_sampled_equally_often(length, count):
    offsets = (torch.arange(1000) + 0.5) / 1000
    hits = torch.zeros(length)
    for offset in offsets:
        rows = systematic_rows(length, count, float(offset), torch.device("cpu"))
        assert len(set(rows.tolist())) == count
        hits[rows] += 1
    torch.testing.assert_close(hits / 1000, torch.full((length,), count / length), atol=2e-3, rtol=0)
