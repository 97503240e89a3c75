"""Tables and sentences about temperature, from results with known numbers."""

import math

import pytest
import torch

from natattn.analysis.criticality import Peak, finite_size
from natattn.analysis.questions.temperature import (
    CURVES,
    ContextPeaks,
    Contexts,
    Scan,
    growth_sentence,
    least_loss,
    loss_sentence,
    verdict,
)
from natattn.analysis.verdicts import AnalysisResult

TEMPERATURES = (0.5, 1.0, 2.0)


def scanned(length, seed, steps):
    means = {name: (1.0,) * 3 for name in CURVES if name != "loss"}
    means["correlation_length"] = tuple(length * temperature for temperature in TEMPERATURES)
    scan = Scan("frozen", TEMPERATURES, (0,), means, {}, {"heat_capacity": (), "susceptibility": ()}, None)
    return AnalysisResult("models", "text", seed, steps, {"frozen": scan})


def test_correlation_lengths_over_temperature_and_training():
    models = [scanned(length, seed, steps) for steps, length in ((100, 4.0), (200, 8.0)) for seed in range(5)]
    findings, (by_temperature, by_steps) = verdict("k", models)
    assert findings == []
    assert [row[:3] for row in by_temperature.rows][:3] == [
        ("text, 100 steps", "scores frozen", temperature) for temperature in TEMPERATURES
    ]
    assert len(by_temperature.rows) == 6
    column = by_steps.headings.index("correlation length ξ, tokens")
    assert [(row[1], row[2], row[column].value) for row in by_steps.rows] == [(100, 1.0, 4.0), (200, 1.0, 8.0)]


def test_peaks_over_the_context_are_compared_with_independent_scores():
    peaks = (
        ContextPeaks("heat_capacity", 16, 2, 2, 1.0, math.log(16), 1.0),
        ContextPeaks("susceptibility", 16, 2, 2, 1.0, 8.0, 1.0),
    )
    result = Contexts(TEMPERATURES, (16,), peaks, {"heat_capacity": None, "susceptibility": None}, {})
    _, (table,) = verdict("k", [AnalysisResult("models", "text", None, None, {"sizes": result})])
    assert [row[-1] for row in table.rows] == pytest.approx([1.0, 0.5])


@pytest.mark.parametrize(
    ("temperatures", "text"),
    [
        ([0.5, 1.0, 2.0], "none is better than the model's own"),
        ([1.5, 2.0, 3.0], "T = 1.5, the nearest to the model's own"),
    ],
)
def test_the_least_loss_is_compared_with_the_models_own_only_if_that_was_tried(temperatures, text):
    grid = torch.tensor(temperatures, dtype=torch.float64)
    found = least_loss(grid, grid.sub(1).abs()[:, None].expand(-1, 2))
    assert found.temperature == found.own
    assert text in loss_sentence(found)


def test_a_smaller_loss_elsewhere_has_an_error_over_sequences():
    loss = torch.tensor([[1.0, 1.2, 1.4], [2.0, 2.1, 2.2]], dtype=torch.float64)
    found = least_loss(torch.tensor([0.5, 1.0], dtype=torch.float64), loss)
    assert (found.temperature, found.own) == (0.5, 1.0)
    assert found.difference == pytest.approx(-0.9)
    assert found.error == pytest.approx(0.1 / 3**0.5)
    assert loss_sentence(found).startswith("The loss is least at T = 0.5 (1.2 nats/token), −0.9 ± 0.115 against T = 1")


def test_how_peaks_move_with_the_context_is_stated_with_their_powers():
    sizes = (32, 64, 128)
    noise = (1.0, 1.001, 1.0)
    peaks = [[Peak(n**-0.25 * e, n**0.5 * e, n**-0.125 * e)] for n, e in zip(sizes, noise, strict=True)]
    text = growth_sentence("heat_capacity", finite_size(sizes, peaks))
    assert text.startswith("Peaks of the heat capacity as the context grows: grows and sharpens: height ∝ L^0.5 [0.4")
    assert ", width in log T ∝ L^−0.125 [−0.1" in text
    assert ", T_c ∝ L^−0.25 [−0.2" in text
    assert "nothing can be said" in growth_sentence("heat_capacity", None)
