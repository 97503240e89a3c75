"""Temperature scans against closed forms, the probe, and the model itself."""

import math

import pytest
import torch
from small_models import MODELS, bert, gpt2

from natattn.analysis import temperature_scan
from natattn.analysis.temperature_scan import scan_temperatures
from natattn.attention.layers import attach
from natattn.attention.probe import AttentionProbe
from natattn.attention.types.tempered import Tempered

GRID = [0.3, 1.0, 2.5]
LENGTH = 10


@pytest.fixture
def tokens():
    return torch.randint(20, (5, LENGTH), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", MODELS)
def test_at_its_own_temperature_a_scan_says_what_the_probe_says(name, tokens):
    model = MODELS[name]()
    quantities = ("free_energy", "internal_energy", "entropy", "heat_capacity")
    scan = scan_temperatures(model, tokens, GRID, batch_size=2)
    with AttentionProbe(model, quantities=quantities, row_count=None) as probe, probe.step(0), torch.no_grad():
        model.eval()(input_ids=tokens)
    for place, layer in enumerate(scan.layers):
        for quantity in quantities:
            ours = scan.values[quantity][1, place].mean(-1).float()
            torch.testing.assert_close(ours, probe.statistics(layer)[quantity], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_both_kinds_agree_where_they_must(name, tokens):
    model = MODELS[name]()
    frozen = scan_temperatures(model, tokens, GRID, kind="frozen")
    propagated = scan_temperatures(model, tokens, GRID, kind="propagated", batch_size=2)
    for quantity in temperature_scan.ROW_MEANS:
        ours, theirs = frozen.values[quantity], propagated.values[quantity]
        torch.testing.assert_close(ours[1], theirs[1], rtol=1e-4, atol=1e-5)  # T = 1 is the model itself
        torch.testing.assert_close(ours[:, 0], theirs[:, 0], rtol=1e-4, atol=1e-5)  # the first layer sees the same
        assert not torch.allclose(ours[0, 1], theirs[0, 1], rtol=1e-3), quantity
    assert frozen.loss is None


def test_the_loss_is_the_models_at_that_temperature(tokens):
    model = gpt2()
    scan = scan_temperatures(model, tokens, GRID, kind="propagated", batch_size=2)
    model.eval()
    for temperature, losses in zip(GRID, scan.loss, strict=True):
        attach(model, Tempered(temperature))
        with torch.no_grad():
            expected = float(model(input_ids=tokens, labels=tokens).loss)
        assert float(losses.mean()) == pytest.approx(expected, rel=1e-5)
    assert scan_temperatures(bert(), tokens, GRID, kind="propagated").loss is None


@pytest.mark.parametrize("kind", ["frozen", "propagated"])
def test_the_model_is_left_as_it_was(kind, tokens):
    model = gpt2()
    implementation = model.config._attn_implementation
    before = model.eval()(input_ids=tokens).logits
    model.train()
    scan_temperatures(model, tokens, GRID, kind=kind)
    assert model.training
    assert model.config._attn_implementation == implementation
    assert torch.equal(model.eval()(input_ids=tokens).logits, before)


def test_a_temperature_that_is_attached_is_not_lost():
    model = gpt2().eval()
    tokens = torch.randint(20, (2, LENGTH))
    attach(model, Tempered(2.0))
    before = model(input_ids=tokens).logits
    with pytest.raises(ValueError, match="of its own"):
        scan_temperatures(model, tokens, GRID, kind="propagated")
    scan_temperatures(model, tokens, GRID)
    assert torch.equal(model(input_ids=tokens).logits, before)


def test_order_parameter_susceptibility_and_profile_by_their_definitions(tokens):
    model = gpt2().eval()
    scan = scan_temperatures(model, tokens, [1.0], batch_size=2)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        patterns = model(input_ids=tokens, output_attentions=True).attentions
    keys = torch.arange(1, LENGTH + 1).double()
    for layer, pattern_BHLS in enumerate(patterns):
        square = pattern_BHLS.double().square().sum(-1)
        order = ((square - 1 / keys) / (1 - 1 / keys))[..., 1:]  # the first row has one key
        torch.testing.assert_close(scan.values["order_parameter"][0, layer], order.mean(-1).mT, rtol=1e-4, atol=1e-6)
        fluctuation = (order.var(0) * keys[1:]).sum(-1) / LENGTH
        torch.testing.assert_close(scan.susceptibility[0, layer], fluctuation, rtol=1e-4, atol=1e-7)
        for lag in range(LENGTH - 1):
            rows = torch.arange(lag + 1, LENGTH)
            expected = pattern_BHLS[:, :, rows, rows - lag].double().mean((0, 2))
            torch.testing.assert_close(scan.lag_profile[0, layer, :, lag], expected, rtol=1e-4, atol=1e-7)
        assert scan.lag_profile[0, layer, :, LENGTH - 1].abs().max() == 0  # only the first token is that far


def test_rows_in_chunks_are_rows(tokens, monkeypatch):
    whole = scan_temperatures(gpt2(), tokens, GRID)
    monkeypatch.setattr(temperature_scan, "CHUNK_ROWS", 3)
    chunked = scan_temperatures(gpt2(), tokens, GRID)
    for name in temperature_scan.ROW_MEANS:
        torch.testing.assert_close(chunked.values[name], whole.values[name], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(chunked.lag_profile, whole.lag_profile)
    torch.testing.assert_close(chunked.susceptibility, whole.susceptibility)


def test_two_levels_have_their_closed_form():
    """One key of energy gap above the others: Z = e^(gap/T) + n − 1."""
    gap, count = 3.0, 8
    energy = torch.zeros(1, 1, 1, count)
    energy[..., 2] = gap
    keys = torch.full((1, 1, 1), count)
    for temperature in (0.2, 1.0, 5.0):
        rows, pattern = temperature_scan._tempered(
            energy.double(), torch.ones(1, 1, 1, count).bool(), keys, temperature
        )
        partition = math.exp(gap / temperature) + count - 1
        high = math.exp(gap / temperature) / partition
        assert float(pattern[..., 2]) == pytest.approx(high)
        expected = {
            "free_energy": -temperature * math.log(partition),
            "internal_energy": -high * gap,
            "entropy": math.log(partition) - high * gap / temperature,
            "heat_capacity": (gap / temperature) ** 2 * high * (1 - high),
        }
        for name, value in expected.items():
            assert float(rows[name]) == pytest.approx(value, rel=1e-9, abs=1e-12), name


def test_progress_counts_every_temperature_of_every_sequence(tokens):
    for kind in ("frozen", "propagated"):
        told = []
        scan_temperatures(gpt2(), tokens, GRID, kind=kind, batch_size=2, advance=told.append)
        assert sum(told) == len(tokens) * len(GRID)


@pytest.mark.parametrize("grid", [[], [1.0, 0.0], [-1.0], [math.nan]])
def test_temperatures_must_be_positive(grid, tokens):
    with pytest.raises(ValueError, match="must be positive"):
        scan_temperatures(gpt2(), tokens, grid)


def test_the_models_own_temperature_is_among_those_of_a_scan():
    from natattn.analysis.settings import TemperatureGrid

    grid = TemperatureGrid(lowest=0.1, highest=10.0, count=20).values
    assert len(grid) == 21
    assert 1.0 in grid
    assert grid == sorted(grid)
    assert grid[0] == pytest.approx(0.1)
    assert grid[-1] == pytest.approx(10.0)
    assert TemperatureGrid(lowest=0.1, highest=10.0, count=21).values.count(1.0) == 1
    assert len(TemperatureGrid(lowest=0.1, highest=10.0, count=21).values) == 21
    assert len(TemperatureGrid(lowest=2.0, highest=10.0, count=5).values) == 5
