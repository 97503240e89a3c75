"""Approximations of attention's Fisher: every product without the P × P matrix against the one with it."""

import itertools
import math

import pytest
import torch
from dense_fisher import off_diagonal_mean, outer_products, seeded
from fisher_oracles import eigenspace_overlap, query_fisher

from natattn.analysis import fisher_errors as fisher
from natattn.analysis.fisher_capture import row_covariances
from natattn.analysis.fisher_conditioning import PRECONDITIONERS, conditioning, preconditioners
from natattn.analysis.fisher_errors import QueryGradients, QueryRows, ScoreFisher, query_products, true_cosines
from natattn.analysis.questions.fisher import jackknife
from natattn.attention.energy import AttentionInputs
from natattn.attention.patterns import row_patterns
from natattn.fisher.decomposition import cosine, relative_frobenius_error, score_fisher, softcap_slope

WIDTH, HEAD_DIM = 5, 3


def _patterns(*shape, seed=0):
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64).mul(2).softmax(-1)


def _rows(sequences, per_sequence, seed=0):
    generator = seeded(seed)
    inputs = torch.randn(sequences, per_sequence, WIDTH, generator=generator, dtype=torch.float64) + 0.5
    half = torch.randn(sequences, per_sequence, HEAD_DIM, 2, generator=generator, dtype=torch.float64)
    return QueryRows(inputs, half @ half.mT)


def _dense(rows):
    """F and its approximants, P × P."""
    exact = outer_products(rows).mean((0, 1))
    inputs, covariances = rows.inputs.flatten(0, 1), rows.covariances.flatten(0, 1)
    second = inputs.mT @ inputs / len(inputs)
    trace = covariances.diagonal(dim1=-2, dim2=-1).sum(-1)
    traced = (inputs * trace[:, None]).mT @ inputs / len(inputs)
    identity = torch.eye(HEAD_DIM, dtype=torch.float64)
    return exact, {
        fisher.KRONECKER: torch.kron(covariances.mean(0), second),
        fisher.TRACED: torch.kron(identity / HEAD_DIM, traced),
        fisher.INPUT: torch.kron(identity, second),
        fisher.DIAGONAL: torch.diag(exact.diagonal()),
        fisher.IDENTITY: torch.eye(len(exact), dtype=torch.float64),
    }


def test_score_fisher_is_the_mean_over_rows_and_agreements_those_of_matrices():
    pattern = _patterns(2, 3, 12, 12)
    space = ScoreFisher(pattern)
    torch.testing.assert_close(space.exact, score_fisher(pattern).mean(-3))
    found = space.agreements(3)
    assert tuple(found) == (fisher.KEY_GRAM, fisher.QUERY_GRAM, fisher.SYMMETRISED, fisher.MARGINAL)
    for name, approximate in space.approximants().items():
        torch.testing.assert_close(found[name].cosine, cosine(approximate, space.exact))
        torch.testing.assert_close(found[name].error, relative_frobenius_error(approximate, space.exact))
        torch.testing.assert_close(found[name].overlap, eigenspace_overlap(approximate, space.exact, 3))
        scale = (approximate * space.exact).sum((-2, -1)) / approximate.square().sum((-2, -1))
        best = relative_frobenius_error(scale.clamp_min(0)[..., None, None] * approximate, space.exact)
        torch.testing.assert_close(found[name].best_scale_error, best)


def test_the_uniform_pattern_in_closed_form():
    """F = (I − J)/L with J = 11ᵀ/L = A: A Aᵀ is orthogonal to it, and (F + λI)⁻¹ is a combination of I and A."""
    length, damping = 8, 0.25
    space = ScoreFisher(torch.full((length, length), 1 / length, dtype=torch.float64))
    found = space.agreements(2)
    for name in (fisher.KEY_GRAM, fisher.QUERY_GRAM, fisher.SYMMETRISED):
        assert float(found[name].cosine) == pytest.approx(0, abs=1e-12)
        assert float(found[name].best_scale_error) == pytest.approx(1)
    assert float(found[fisher.MARGINAL].cosine) == pytest.approx(math.sqrt(1 - 1 / length))
    inverse, coefficient = space.inverse_agreements(damping)
    shift = damping * (length - 1) / length**2
    on_ones, elsewhere = 1 / shift, 1 / (1 / length + shift)
    assert float(coefficient) == pytest.approx(on_ones / elsewhere - 1)
    assert float(inverse[fisher.FITTED].cosine) == pytest.approx(1)
    norm = math.sqrt(on_ones**2 + (length - 1) * elsewhere**2)
    with_pattern = (2 * on_ones + (length - 1) * elsewhere) / (norm * math.sqrt(length + 3))
    assert float(inverse[fisher.IDENTITY_AND_PATTERN].cosine) == pytest.approx(with_pattern)


def test_the_inverse_and_its_best_coefficient_by_least_squares():
    space = ScoreFisher(_patterns(10, 10, seed=3))
    found, coefficient = space.inverse_agreements(0.1)
    identity = torch.eye(10, dtype=torch.float64)
    exact = torch.linalg.inv(space.exact + 0.1 * space.exact.diagonal().mean() * identity)
    symmetric = (space.pattern + space.pattern.mT) / 2
    torch.testing.assert_close(found[fisher.IDENTITY].cosine, cosine(identity, exact))
    torch.testing.assert_close(found[fisher.IDENTITY_AND_PATTERN].cosine, cosine(identity + symmetric, exact))
    columns = torch.stack([identity.flatten(), symmetric.flatten()], dim=1)
    alpha, beta = torch.linalg.lstsq(columns, exact.flatten()[:, None]).solution.flatten()
    torch.testing.assert_close(coefficient, beta / alpha)
    torch.testing.assert_close(found[fisher.FITTED].cosine, cosine(alpha * identity + beta * symmetric, exact))


def test_products_of_given_rows_are_those_of_the_dense_matrices():
    rows = _rows(3, 4)
    products = query_products(rows, sampled=False)
    exact, approximants = _dense(rows)
    torch.testing.assert_close(products.exact_square, exact.square().sum())
    agreements = products.agreements()
    for name, approximate in approximants.items():
        torch.testing.assert_close(products.inner[name], (approximate * exact).sum())
        torch.testing.assert_close(products.square[name], approximate.square().sum())
        torch.testing.assert_close(agreements[name].cosine, cosine(approximate, exact))
        if name in (fisher.IDENTITY, fisher.INPUT):
            assert agreements[name].error.isnan()
        else:
            torch.testing.assert_close(agreements[name].error, relative_frobenius_error(approximate, exact))


def test_products_of_a_sample_are_unbiased_over_all_samples():
    """All 3⁴ samples of four rows from a population of three: their mean is the population's product."""
    population = _rows(1, 3, seed=1)
    expected = query_products(population, sampled=False)
    samples = [
        query_products(QueryRows(population.inputs[:, chosen], population.covariances[:, chosen]))
        for chosen in map(list, itertools.product(range(3), repeat=4))
    ]

    def mean(values):
        return torch.stack(list(values)).mean()

    torch.testing.assert_close(mean(s.exact_square for s in samples), expected.exact_square)
    torch.testing.assert_close(mean(s.input_square for s in samples), expected.input_square)
    for name in fisher.QUERY_APPROXIMANTS:
        torch.testing.assert_close(mean(s.inner[name] for s in samples), expected.inner[name])
        torch.testing.assert_close(mean(s.square[name] for s in samples), expected.square[name])


def test_gaussian_rows_have_the_known_fisher_where_the_plug_in_is_too_long():
    """x ∼ N(0, I_N), C = I_D: F = I, ‖F‖² = P."""
    width, dim, count = 20, 2, 40
    covariances = torch.eye(dim, dtype=torch.float64).expand(1, count, dim, dim)
    found = []
    for seed in range(200):
        inputs = torch.randn(1, count, width, generator=seeded(seed), dtype=torch.float64)
        rows = QueryRows(inputs, covariances)
        found.append([float(query_products(rows, sampled=sampled).exact_square) for sampled in (True, False)])
    unbiased, plug_in = torch.tensor(found).T
    assert abs(float(unbiased.mean()) - width * dim) < 4 * float(unbiased.std()) / math.sqrt(len(unbiased))
    assert float(plug_in.mean()) > 1.4 * width * dim


def test_products_of_a_sample_need_four_rows():
    with pytest.raises(ValueError, match="at least 4"):
        query_products(_rows(1, 3))


def _true():
    generator = seeded(7)
    gradients = torch.randn(4, 2, HEAD_DIM, WIDTH, generator=generator, dtype=torch.float64)
    half = torch.randn(4, HEAD_DIM, 4, generator=generator, dtype=torch.float64)
    return QueryGradients(gradients, half @ half.mT)


def test_true_cosines_are_those_of_the_dense_matrices_of_other_sequences():
    count, per_sequence = 4, 3
    rows, true = _rows(count, per_sequence, seed=2), _true()
    products = query_products(rows)
    found = true_cosines(true, rows, products)

    flat = true.gradients.flatten(2)
    fishers = (flat.mT @ flat / 2).flatten(1)
    length = off_diagonal_mean(fishers @ fishers.mT).sqrt()
    exact = off_diagonal_mean(fishers @ outer_products(rows).mean(1).flatten(1).mT)
    torch.testing.assert_close(found[fisher.EXACT][0], exact / (length * products.exact_square.sqrt()))
    places = list(itertools.product(range(count), range(per_sequence)))
    terms, kfac = [], []
    for b in range(count):
        others = [place for place in places if place[0] != b]
        delta = true.deltas[[c for c in range(count) if c != b]].mean(0)
        for i in others:
            outer = torch.outer(rows.inputs[i], rows.inputs[i])
            kfac.append(fishers[b] @ torch.kron(delta, outer).flatten())
            terms += [fishers[b] @ torch.kron(rows.covariances[k], outer).flatten() for k in others if k != i]
    kronecker = torch.stack(terms).mean() / (length * products.square[fisher.KRONECKER].sqrt())
    torch.testing.assert_close(found[fisher.KRONECKER][0], kronecker)
    delta_square = off_diagonal_mean(true.deltas.flatten(1) @ true.deltas.flatten(1).mT)
    norm = (delta_square * products.input_square).sqrt()
    torch.testing.assert_close(found[fisher.KFAC][0], torch.stack(kfac).mean() / (length * norm))
    diagonals = fishers.view(count, HEAD_DIM * WIDTH, -1).diagonal(dim1=-2, dim2=-1)
    own = off_diagonal_mean(diagonals @ diagonals.mT).sqrt() / length
    torch.testing.assert_close(found[fisher.OWN_DIAGONAL][0], own)
    of_rows = outer_products(rows).mean(1).diagonal(dim1=-2, dim2=-1)
    diagonal = off_diagonal_mean(diagonals @ of_rows.mT) / (length * products.square[fisher.DIAGONAL].sqrt())
    torch.testing.assert_close(found[fisher.DIAGONAL][0], diagonal)
    trace = rows.covariances.diagonal(dim1=-2, dim2=-1).sum(-1)
    for name, weight in ((fisher.TRACED, trace / HEAD_DIM), (fisher.INPUT, torch.ones_like(trace))):
        second = torch.einsum("br,brn,brm->bnm", weight, rows.inputs, rows.inputs) / per_sequence
        matrices = torch.stack([torch.kron(torch.eye(HEAD_DIM, dtype=torch.float64), each) for each in second])
        inner = off_diagonal_mean(fishers @ matrices.flatten(1).mT)
        torch.testing.assert_close(found[name][0], inner / (length * products.square[name].sqrt()))
    identity = diagonals.sum(-1).mean() / (length * math.sqrt(rows.parameters))
    torch.testing.assert_close(found[fisher.IDENTITY][0], identity)


def test_true_cosines_without_each_sequence():
    rows, true = _rows(4, 3, seed=2), _true()
    products = query_products(rows)
    found = true_cosines(true, rows, products)
    kept = [1, 2, 3]
    without = true_cosines(
        QueryGradients(true.gradients[kept], true.deltas[kept]),
        QueryRows(rows.inputs[kept], rows.covariances[kept]),
        products,
    )
    for name in (fisher.EXACT, fisher.INPUT, fisher.TRACED, fisher.DIAGONAL, fisher.IDENTITY, fisher.OWN_DIAGONAL):
        torch.testing.assert_close(found[name][1], without[name][0])
    with pytest.raises(ValueError, match="at least 3"):
        true_cosines(QueryGradients(true.gradients[:2], true.deltas[:2]), rows, products)


def test_the_jackknife_of_a_mean_is_its_standard_error():
    values = torch.randn(20, generator=seeded(5), dtype=torch.float64)
    without = (values.sum() - values) / 19
    low, high = jackknife(torch.cat([values.mean()[None], without]))
    assert (high - low) / 2 == pytest.approx(1.96 * float(values.std()) / math.sqrt(20))
    assert (high + low) / 2 == pytest.approx(float(values.mean()))


@pytest.mark.parametrize("dense_up_to", [0, 1024])
def test_preconditioned_spectra_are_those_of_the_dense_matrices(dense_up_to):
    damping, width, dim = 0.3, 8, 5
    known, new = (
        QueryRows(
            torch.randn(2, 30, width, generator=seeded(seed), dtype=torch.float64) * torch.arange(1, width + 1),
            torch.stack([c @ c.mT for c in torch.randn(60, dim, 4, generator=seeded(seed), dtype=torch.float64)])
            .view(2, 30, dim, dim),
        )
        for seed in (1, 2)
    )  # fmt: skip
    made = preconditioners(known, damping)
    assert tuple(made) == PRECONDITIONERS
    exact = outer_products(new).mean((0, 1))
    size = len(exact)
    exact = exact + damping**2 * exact.diagonal().mean() * torch.eye(size, dtype=torch.float64)
    inputs, covariance = known.inputs.flatten(0, 1), known.covariances.mean((0, 1))
    second = inputs.mT @ inputs / len(inputs)
    old = outer_products(known).mean((0, 1)).diagonal()
    eye = torch.eye(dim, dtype=torch.float64)

    def damped(matrix):
        return matrix + damping * matrix.diagonal().mean() * torch.eye(len(matrix), dtype=torch.float64)

    matrices = {
        fisher.IDENTITY: torch.eye(size, dtype=torch.float64),
        fisher.DIAGONAL: torch.diag(old + damping**2 * old.mean()),
        fisher.INPUT: torch.kron(eye, damped(second)),
        fisher.KRONECKER: torch.kron(damped(covariance), damped(second)),
    }
    for name, preconditioner in made.items():
        root = torch.linalg.inv(torch.linalg.cholesky(matrices[name]))
        values = torch.linalg.eigvalsh(root @ exact @ root.mT)
        found = conditioning(new, preconditioner, damping=damping, dense_up_to=dense_up_to, seed=0)
        expected = (values.flip(0) / values.mean())[: len(found.largest)].numpy()
        assert found.largest == pytest.approx(expected, rel=1e-3)
        evenness = float(values.mean() ** 2 / values.square().mean())
        assert found.evenness == pytest.approx(evenness, rel=1e-6 if dense_up_to else 0.05)


def test_a_fisher_that_is_a_product_is_made_even_by_its_factors():
    inputs = torch.randn(6, WIDTH, generator=seeded(), dtype=torch.float64)
    half = torch.randn(4, HEAD_DIM, HEAD_DIM, generator=seeded(1), dtype=torch.float64)
    pairs = list(itertools.product(range(6), range(4)))
    rows = QueryRows(
        torch.stack([inputs[i] for i, _ in pairs])[None], torch.stack([half[k] @ half[k].mT for _, k in pairs])[None]
    )
    found = query_products(rows, sampled=False).agreements()[fisher.KRONECKER]
    assert float(found.cosine) == pytest.approx(1)
    made = preconditioners(rows, 1e-4)
    assert conditioning(rows, made[fisher.KRONECKER], damping=1e-4, seed=0).evenness > 0.99
    assert conditioning(rows, made[fisher.IDENTITY], damping=1e-4, seed=0).evenness < 0.7


@pytest.mark.parametrize("options", [{}, {"softcap": 1.5}, {"temperature": torch.tensor([0.5, 1.0, 2.0, 3.0])}])
def test_row_covariances_make_the_query_fisher(options):
    generator = seeded()
    query, key, x = (
        torch.randn(2, *shape, generator=generator, dtype=torch.float64) for shape in ((4, 6, 3), (2, 6, 3), (6, 5))
    )
    inputs = AttentionInputs(query, key, 0.7, **options)
    every = torch.arange(6).expand(2, 6)
    slope = softcap_slope(inputs, every[0])
    expected = query_fisher(inputs, x) / 12
    for head in range(4):
        covariances = row_covariances(inputs, row_patterns(inputs), slope, head, every)
        torch.testing.assert_close(outer_products(QueryRows(x, covariances)).mean((0, 1)), expected[head])
