"""Kronecker factors against loops over rows, over every sample of rows, and against the exact Fisher blocks."""

from dataclasses import replace

import pytest
import torch
from fisher_oracles import key_fisher, query_fisher, rotary_key_error

from natattn.attention.energy import AttentionInputs, systematic_rows
from natattn.fisher.decomposition import relative_frobenius_error
from natattn.fisher.kronecker import FACTORS, Rotary, first_sequences, kronecker_factors
from natattn.fisher.roots import damped_inverse


def _all_rows(inputs):
    return torch.arange(inputs.length)


def _factors_by_loops(layer):
    """Return the terms of every query row by the definitions, as lists under (factor, head)."""
    query, key = layer.queries_and_keys()
    turn, pattern, allowed = layer.rotation_matrices(), layer.patterns(), layer.allowed_pairs()
    softcap = layer.options.get("softcap")
    temperature = torch.as_tensor(layer.options.get("temperature", 1.0), dtype=torch.float64).expand(query.shape[1])
    terms = {}
    for b, h, i in allowed.any(-1).nonzero().tolist():
        group = query.shape[1] // layer.key_heads
        g, a, q, x = h // group, pattern[b, h, i], query[b, h, i], layer.input[b]
        scale = layer.scaling / temperature[h]
        energy = key[b, g] @ q * layer.scaling
        slope = torch.ones_like(a) if softcap is None else 1 - torch.tanh(energy / softcap) ** 2

        def covariance(vectors, a=a, slope=slope):
            vectors = slope[:, None] * vectors
            deviation = vectors - a @ vectors
            return deviation.T @ torch.diag(a) @ deviation

        def add(name, head, term):
            terms.setdefault((name, head), []).append(term)

        turned = turn.mT @ q
        add("query_input", h, torch.outer(x[i], x[i]))
        add("query_output", h, scale**2 * turn[i].T @ covariance(key[b, g]) @ turn[i])
        add("key_input", g, covariance(x))
        add("key_output", g, scale**2 * group * turned.T @ torch.diag(a) @ turned)
        add("value_input", g, torch.outer(a @ x, a @ x))
        add("query_input_traced", h, scale**2 * covariance(key[b, g]).trace() * torch.outer(x[i], x[i]))
        add("key_input_traced", g, scale**2 * group * (q @ q) * covariance(x))
    return {place: torch.stack(rows).mean(0) for place, rows in terms.items()}


def test_all_rows_give_the_means_by_definition(layer):
    inputs = layer.inputs()
    factors = kronecker_factors(inputs, layer.input, _all_rows(inputs), rotary=layer.rotation)

    if layer.allowed is not None and layer.allowed.shape[1] > 1:
        # Heads of one group may then have different numbers of rows; the table has one key head per head there.
        assert factors["query_input"].shape[0] == inputs.query.shape[1]
    for (name, head), expected in _factors_by_loops(layer).items():
        factor = factors[name].expand(max(head + 1, factors[name].shape[0]), -1, -1)[head]
        torch.testing.assert_close(factor, expected, rtol=1e-10, atol=1e-12, msg=f"{name} of head {head}")


def test_traced_factors_are_partial_traces_of_the_dense_fisher(make_layer):
    layer = make_layer(key_heads=2)
    inputs = layer.inputs()
    factors = kronecker_factors(inputs, layer.input, _all_rows(inputs))
    rows = inputs.count_pairs_and_rows()[1]
    width = layer.input.shape[-1]
    for name, dense in (("query", query_fisher(inputs, layer.input)), ("key", key_fisher(inputs, layer.input))):
        heads = dense.shape[0]
        blocks = dense.view(heads, -1, width, dense.shape[1] // width, width)
        expected = blocks.diagonal(dim1=1, dim2=3).sum(-1) / rows[0]
        torch.testing.assert_close(factors[f"{name}_input_traced"], expected, rtol=1e-10, atol=1e-12)
    shared = kronecker_factors(inputs, layer.input, _all_rows(inputs), shared_key_input=True)["key_input_traced"]
    torch.testing.assert_close(shared[0], factors["key_input_traced"].mean(0), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("count", [1, 2, 4, 5])
def test_sampled_rows_are_unbiased(layer, count):
    """⌊(k + offset)·L/count⌋ changes only at multiples of 1/L, so L midpoints give every possible sample."""
    inputs = layer.inputs()
    exact = kronecker_factors(inputs, layer.input, _all_rows(inputs), rotary=layer.rotation)
    offsets = [(part + 0.5) / inputs.length for part in range(inputs.length)]
    samples = [
        kronecker_factors(
            inputs,
            layer.input,
            systematic_rows(inputs.length, count, offset, torch.device("cpu")),
            rotary=layer.rotation,
        )
        for offset in offsets
    ]
    for name, expected in exact.items():
        mean = torch.stack([sample[name] for sample in samples]).mean(0)
        torch.testing.assert_close(mean, expected, rtol=1e-10, atol=1e-12, msg=name)
        assert any(not torch.allclose(sample[name], expected) for sample in samples)


def test_random_samples_average_within_their_standard_error(make_layer):
    layer = make_layer(key_heads=2)
    inputs = layer.inputs()
    exact = kronecker_factors(inputs, layer.input, _all_rows(inputs))
    offsets = torch.rand(400, generator=torch.Generator().manual_seed(0)).tolist()
    rows = [systematic_rows(inputs.length, 2, offset, torch.device("cpu")) for offset in offsets]
    draws = [kronecker_factors(inputs, layer.input, sample) for sample in rows]
    for name in FACTORS:
        values = torch.stack([draw[name] for draw in draws])
        standard_error = values.std(0) / len(draws) ** 0.5
        assert ((values.mean(0) - exact[name]).abs() / standard_error.clamp_min(1e-12)).max() < 4, name


def test_only_wanted_factors_are_computed(make_layer):
    layer = make_layer()
    inputs = layer.inputs()
    factors = kronecker_factors(inputs, layer.input, _all_rows(inputs), wanted=("value_input", "query_output"))
    assert set(factors) == {"query_output", "value_input"}
    with pytest.raises(KeyError):
        kronecker_factors(inputs, layer.input, _all_rows(inputs), wanted=("queries",))


def test_given_row_counts_give_the_same(layer):
    inputs, rows = layer.inputs(), torch.tensor([0, 3, 5])
    _, counted = inputs.count_pairs_and_rows()
    given = kronecker_factors(inputs, layer.input, rows, counted_rows=counted)
    for name, factor in kronecker_factors(inputs, layer.input, rows).items():
        assert torch.equal(given[name], factor)


def test_shared_key_input_is_the_mean_over_heads(layer):
    inputs = layer.inputs()
    rows = torch.tensor([1, 4])
    own, shared = (
        kronecker_factors(inputs, layer.input, rows, wanted=("key_input",), shared_key_input=share)["key_input"]
        for share in (False, True)
    )
    assert own.shape[0] == layer.key_heads
    torch.testing.assert_close(shared, own.mean(0, keepdim=True))


def test_padded_pairs_and_rows_do_not_count(make_layer):
    """The factors do not depend on queries, keys or inputs at padded positions."""
    allowed = torch.ones(2, 1, 6, 6, dtype=torch.bool).tril()
    allowed[1, :, :, :3] = False
    layer = make_layer(key_heads=2, allowed=allowed)
    inputs = layer.inputs()
    query, key, x = inputs.query.clone(), inputs.key.clone(), layer.input.clone()
    for tensor in (query[1].transpose(0, 1), key[1].transpose(0, 1), x[1]):
        tensor[:3] = 1e6
    rows = torch.tensor([0, 2, 3, 5])
    clean = kronecker_factors(inputs, layer.input, rows)
    dirty = kronecker_factors(replace(inputs, query=query, key=key), x, rows)
    for name in FACTORS:
        torch.testing.assert_close(dirty[name], clean[name])


def test_a_batch_without_any_key_gives_zeros(make_layer):
    layer = make_layer(allowed=torch.zeros(2, 1, 6, 6, dtype=torch.bool))
    inputs = layer.inputs()
    for factor in kronecker_factors(inputs, layer.input, _all_rows(inputs)).values():
        assert torch.equal(factor, torch.zeros_like(factor))


def test_first_sequences_are_those_of_the_batch(make_layer):
    allowed = torch.ones(2, 1, 6, 6, dtype=torch.bool).tril()
    allowed[1, :, :, :3] = False
    layer = make_layer(allowed=allowed)
    some = first_sequences(layer.inputs(), 1)
    causal = make_layer()
    expected = first_sequences(causal.inputs(), 1)
    for name in FACTORS:
        rows = _all_rows(some)
        torch.testing.assert_close(
            kronecker_factors(some, layer.input[:1], rows)[name],
            kronecker_factors(expected, causal.input[:1], rows)[name],
        )


def test_factors_ignore_autocast_and_leave_no_graph(make_layer):
    layer = make_layer()
    inputs = layer.inputs()
    inputs = replace(inputs, query=inputs.query.float().requires_grad_(), key=inputs.key.float())
    plain = kronecker_factors(inputs, layer.input.float(), _all_rows(inputs))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = kronecker_factors(inputs, layer.input.float(), _all_rows(inputs))
    for name in FACTORS:
        assert cast[name].dtype == torch.float32
        assert torch.equal(cast[name], plain[name])
        assert not plain[name].requires_grad


def test_gradient_of_the_values_runs_through_averaged_inputs(make_layer):
    """D1-V: ∂loss/∂W_V = Σ_i δ_i x̄_iᵀ, and the factor is the mean of x̄ x̄ᵀ."""
    layer = make_layer()
    pattern = layer.patterns()
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(4, 3, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    value = torch.einsum("hdn,bjn->bhjd", weight, layer.input)
    output = pattern @ value
    output.retain_grad()
    (output.tanh() * torch.randn(output.shape, generator=generator, dtype=torch.float64)).sum().backward()

    averaged = pattern @ layer.input[:, None]
    torch.testing.assert_close(weight.grad, torch.einsum("bhid,bhin->hdn", output.grad, averaged))
    inputs = layer.inputs()
    factor = kronecker_factors(inputs, layer.input, _all_rows(inputs), wanted=("value_input",))["value_input"]
    torch.testing.assert_close(factor, torch.einsum("bhin,bhim->hnm", averaged, averaged) / 12)


def _products(factors):
    """S ⊗ A per head, for both sides."""
    products = {}
    for side in ("query", "key"):
        outputs, inputs = factors[f"{side}_output"], factors[f"{side}_input"]
        pairs = zip(outputs, inputs.expand(outputs.shape[0], -1, -1), strict=True)
        products[side] = torch.stack([torch.kron(a.contiguous(), b.contiguous()) for a, b in pairs])
    return products


@pytest.mark.parametrize("length", [1, 3], ids=["one row", "identical rows"])
def test_product_is_exact_for_equal_rows(length):
    """Every row has the same query, so the mean of products is the product of means."""
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(1, 2, 1, 4, generator=generator, dtype=torch.float64).expand(-1, -1, length, -1)
    key = torch.randn(1, 2, 5, 4, generator=generator, dtype=torch.float64)
    query_input = torch.randn(1, 1, 3, generator=generator, dtype=torch.float64).expand(-1, length, -1)
    key_input = torch.randn(1, 5, 3, generator=generator, dtype=torch.float64)
    inputs = AttentionInputs(query, key, scaling=0.5, is_causal=False)

    products = _products(kronecker_factors(inputs, query_input, _all_rows(inputs), key_input_BSN=key_input))
    torch.testing.assert_close(products["query"] * length, query_fisher(inputs, query_input))
    torch.testing.assert_close(products["key"] * length, key_fisher(inputs, key_input))


def test_product_is_exact_for_uniform_patterns_only(make_layer):
    """Without a mask, T → ∞ gives all rows of a sequence the same covariances: one side of each product is constant."""
    layer = make_layer(is_causal=False)
    x = layer.input[:1]
    for temperature, low, high in ((1e7, 0.0, 1e-5), (1.0, 0.1, 10.0)):
        inputs = replace(first_sequences(layer.inputs(), 1), temperature=temperature)
        products = _products(kronecker_factors(inputs, x, _all_rows(inputs)))
        for side, exact in (("query", query_fisher(inputs, x)), ("key", key_fisher(inputs, x))):
            error = relative_frobenius_error(products[side] * inputs.length, exact)
            assert ((error > low) & (error < high)).all(), (side, temperature)


def test_query_side_is_exact_under_rotary_embedding_for_one_row(make_layer):
    layer = make_layer(rotary="halves")
    inputs = layer.inputs()
    only = torch.zeros(2, 1, 6, 6, dtype=torch.bool)
    only[0, :, 4, :5] = True
    inputs = replace(inputs, attention_mask=only)
    factors = kronecker_factors(inputs, layer.input, _all_rows(inputs), rotary=layer.rotation)
    torch.testing.assert_close(_products(factors)["query"], query_fisher(inputs, layer.input, layer.rotation))
    without = kronecker_factors(inputs, layer.input, _all_rows(inputs))
    assert relative_frobenius_error(without["query_output"], factors["query_output"]).min() > 0.05


def test_rotary_key_error_is_measured(make_layer):
    """The relative rotation matters, and averaging over the keys that a row reads captures part of it."""
    layer = make_layer(rotary="halves")
    inputs = layer.inputs(layer.query_weight * 0.3, layer.key_weight * 0.3)
    plain = rotary_key_error(inputs, layer.input, layer.rotation, "plain")
    averaged = rotary_key_error(inputs, layer.input, layer.rotation)
    assert averaged.shape == (4,)
    assert (averaged > 0.02).all()
    assert (averaged < plain).all()
    assert averaged.mean() < 0.7 * plain.mean()
    still = Rotary(torch.ones(1, 6, 4, dtype=torch.float64), torch.zeros(1, 6, 4, dtype=torch.float64))
    assert rotary_key_error(inputs, layer.input, still).max() < 1e-12


@pytest.mark.parametrize("kind", ["halves", "interleaved"])
def test_rotary_is_the_linear_map(make_layer, kind):
    layer = make_layer(rotary=kind, rotary_dim=2)
    turn, rotary = layer.rotation_matrices(), layer.rotation
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(2, 3, 6, 4, generator=generator, dtype=torch.float64)
    matrices = vectors[..., :, None] * vectors[..., None, :]
    torch.testing.assert_close(rotary.rotate(vectors), torch.einsum("lde,bhle->bhld", turn, vectors))
    torch.testing.assert_close(rotary.transpose_rotate(vectors), torch.einsum("led,bhle->bhld", turn, vectors))
    expected = turn.mT @ matrices @ turn
    torch.testing.assert_close(rotary.conjugate(matrices), expected)
    torch.testing.assert_close(rotary.sum_of_conjugates(matrices), expected.sum((0, 2)))
    own_positions = Rotary(*(table.expand(2, -1, -1) for table in (rotary.cos, rotary.sin)), rotary.interleaved)
    torch.testing.assert_close(own_positions.sum_of_conjugates(matrices), expected.sum((0, 2)))


def test_rotary_is_that_of_transformers():
    """The cosines and sines of a Llama model, used as it uses them."""
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

    config = LlamaConfig(hidden_size=16, num_attention_heads=2, num_key_value_heads=1, head_dim=8)
    query = torch.randn(2, 2, 6, 8, generator=torch.Generator().manual_seed(0))
    key = query[:, :1] + 1
    cos, sin = LlamaRotaryEmbedding(config)(query, torch.arange(6)[None])
    rotary = Rotary(cos, sin)
    expected_query, expected_key = apply_rotary_pos_emb(query, key, cos, sin)
    torch.testing.assert_close(rotary.rotate(query), expected_query)
    torch.testing.assert_close(rotary.rotate(key), expected_key)
    torch.testing.assert_close(rotary.transpose_rotate(expected_query), query)


def test_solutions_follow_a_change_of_units(make_layer):
    """W_Q → c·W_Q, W_K → W_K/c leaves every score unchanged; S⁻¹ M A⁻¹ then moves both weights in their own units."""
    layer, c = make_layer(), 3.0
    gradient = torch.randn(4, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    steps = []
    for factor in (1.0, c):
        inputs = layer.inputs(layer.query_weight * factor, layer.key_weight / factor)
        factors = kronecker_factors(inputs, layer.input, _all_rows(inputs))
        inverse = {name: damped_inverse(matrices, 0.1)[0] for name, matrices in factors.items()}
        query = inverse["query_output"] @ (gradient / factor) @ inverse["query_input"]
        key = inverse["key_output"] @ (gradient * factor) @ inverse["key_input"]
        steps.append((query, key))
    torch.testing.assert_close(steps[1][0], steps[0][0] * c)
    torch.testing.assert_close(steps[1][1], steps[0][1] / c)
