"""Placebos in place of attention statistics."""

import pytest
import torch

from natattn.optim.matrix import Matrix
from natattn.optim.placebo import PlaceboStatistics


class Source:
    """A probe whose factors are layer + head / 10."""

    def __init__(self, layers, heads=1):
        self.layers = list(range(layers))
        self.heads = heads
        self.captures = 0
        self.recorded_layers = self.layers
        self.skipped = {"0.key_input": 3}
        self.energy = 0.0

    def average(self, owner, name):
        if isinstance(owner, str):
            return torch.full((1, 2, 2), 100.0)
        return torch.stack([torch.full((2, 2), owner + head / 10) for head in range(self.heads)])

    def attention_distance(self, layer):
        return torch.arange(4.0)

    def mean_energy(self, layer):
        return torch.tensor(self.energy - 10 * layer)

    def mean_absolute_energy(self, layer):
        return torch.tensor(self.energy + layer)


def placebo(kind, layers=3, heads=1, **options):
    parameter = torch.nn.Parameter(torch.zeros(2, 2))
    matrices = [Matrix(f"{layer}", parameter, "query", layer, module=f"m{layer}") for layer in range(layers)]
    source = Source(layers, heads)
    return source, PlaceboStatistics(source, kind, matrices, **options)


@pytest.mark.parametrize(("layers", "heads"), [(2, 1), (4, 1), (3, 4), (1, 4)])
def test_shuffled_factors_are_never_a_layers_own(layers, heads):
    source, found = placebo("shuffled", layers, heads)
    orders, orders_of_heads = set(), set()
    for source.captures in range(60):
        shown = [found.average(layer, "query_input")[:, 0, 0] for layer in range(layers)]
        for layer, values in enumerate(shown):
            own = source.average(layer, "query_input")[:, 0, 0]
            if layers > 1:
                assert int(values[0]) != layer
            else:
                assert not bool((values == own).any())
        assert sorted(int(values[0]) for values in shown) == list(range(layers))
        orders.add(tuple(torch.cat(shown).tolist()))
        orders_of_heads |= {tuple(values.sub(values.floor()).mul(10).round().tolist()) for values in shown}
    assert len(orders) > 1 or (layers, heads) == (2, 1)  # another order at every capture, if there is a choice
    assert (len(orders_of_heads) > 1) == (heads > 1)


def test_constant_identity_and_plain_factors():
    assert float(placebo("constant")[1].average(0, "query_input")[0, 0, 0]) == 1.0
    torch.testing.assert_close(placebo("identity")[1].average(2, "key_output"), torch.eye(2)[None])
    _, plain = placebo("plain", heads=4)
    assert float(plain.average(1, "query_input")[3, 0, 0]) == 100.0
    torch.testing.assert_close(plain.average(1, "query_output"), torch.eye(2).expand(4, -1, -1))
    assert float(plain.average("m0", "covariance")[0, 0, 0]) == 100.0


def test_distances_are_shuffled_at_every_step_even_if_no_energy_is_read():
    _, found = placebo("shuffled")
    orders = set()
    for step in range(20):
        found.begin(step, [])
        orders.add(tuple(found.attention_distance(0).tolist()))
    assert len(orders) > 3


def test_each_energy_has_a_placebo_of_its_own():
    source, found = placebo("constant")
    for step, energy in enumerate((1.0, 3.0)):
        source.energy = energy
        found.begin(step, ["mean_absolute_energy", "mean_energy"])
    assert float(found.mean_absolute_energy(0)) == pytest.approx(3.0)  # of 1, 2, 3 and 3, 4, 5
    assert float(found.mean_energy(2)) == pytest.approx(-8.0)
    again = placebo("constant")[1]
    again.load_state_dict(found.state_dict())
    source.energy = 2.0
    again.source.energy = 2.0
    for statistics in (found, again):
        statistics.begin(2, ["mean_absolute_energy", "mean_energy"])
    assert torch.equal(found.mean_energy(1), again.mean_energy(1))


def test_energies_of_layers_that_a_step_did_not_reach_are_not_read():
    source, found = placebo("shuffled")
    source.recorded_layers = [2]
    found.begin(0, ["mean_absolute_energy"])
    assert float(found.mean_absolute_energy(2)) == 2.0
    assert found.recorded_layers == [2]


def test_skipped_captures_are_counted():
    assert placebo("identity")[1].skipped == {"0.key_input": 3}
