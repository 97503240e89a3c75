"""Differences of arms and runs to their baselines, with the paired statistics of the protocol."""

import math
from dataclasses import dataclass

from natattn.analysis.differences import PAIRED_QUANTITIES
from natattn.analysis.frame import Question
from natattn.analysis.run_set import RunSet, pairs
from natattn.analysis.settings import AnalyzeSettings
from natattn.report.section import Advance, Cell, Section, Table, interval_text, shown, table
from natattn.statistics.paired import Difference, differences_of, verdict


@dataclass(frozen=True)
class Compared:
    """The difference treatment − baseline; ``complete`` is false if a run has no partner or no value."""

    label: str
    baseline: str
    difference: Difference
    complete: bool


@dataclass(frozen=True)
class Quantity:
    """The differences of one paired quantity, Holm-adjusted together; ``unit`` is empty for the log of a ratio."""

    key: str
    title: str
    unit: str
    rows: tuple[Compared, ...]


@dataclass(frozen=True)
class Comparison:
    """The result for a set of runs.

    Attributes:
        quantities: that at least one pair of runs has.
        unpaired: labels of treatments without a run that is paired with its baseline's.
        indifference: differences of at most this size, in nats, have no effect.
    """

    quantities: tuple[Quantity, ...]
    unpaired: tuple[str, ...]
    indifference: float


def measure(runs: RunSet, settings: AnalyzeSettings, advance: Advance) -> Comparison:
    """Take the differences of every paired quantity, seed by seed."""
    compared = [(t, other) for t, other in zip(runs.treatments, runs.baselines, strict=True) if other is not None]
    quantities = []
    for key, quantity in PAIRED_QUANTITIES.items():
        samples, complete = [], []
        for treatment, baseline in compared:
            values = [quantity.difference(*mine, *theirs) for mine, theirs in pairs(treatment, baseline)]
            finite = [value for value in values if value is not None and math.isfinite(value)]
            samples.append(finite)
            complete.append(len(finite) == len(values) == len(treatment.runs) == len(baseline.runs))
        advance(1)
        if any(samples):
            rows = tuple(
                Compared(treatment.label, baseline.label, difference, whole)
                for (treatment, baseline), difference, whole in zip(
                    compared, differences_of(samples), complete, strict=True
                )
            )
            quantities.append(Quantity(key, quantity.title, quantity.unit_in(runs.unit), rows))
    unpaired = tuple(treatment.label for treatment, baseline in compared if not pairs(treatment, baseline))
    return Comparison(tuple(quantities), unpaired, settings.indifference)


def section(result: Comparison) -> Section:
    """Show a table for every quantity, and the differences of the final loss in words."""
    findings = [
        _sentence(row, quantity.unit)
        for quantity in result.quantities
        for row in quantity.rows
        if quantity.key == "final_loss" and row.difference.count
    ]
    if result.unpaired:
        findings.append(f"Not paired (other seeds, data or initial weights): {'; '.join(result.unpaired[:6])}.")
    findings.append(
        "Intervals and p-values are Holm-adjusted over the rows of a table: what is adjusted is whether they exclude "
        "zero. A verdict `supported` also needs the "
        "placebos, which this page does not know: it says `below` or `above` where the interval excludes zero."
    )
    tables = tuple(_table(quantity, result.indifference) for quantity in result.quantities)
    return Section("comparison", "Differences", tuple(findings), tables)


def _table(quantity: Quantity, indifference: float) -> Table:
    rows: list[list[Cell]] = []
    for row in quantity.rows:
        d = row.difference
        decided = verdict(d, indifference=indifference if quantity.unit else 0.0, complete=row.complete)
        words = {"supported": "below", "refuted": "above"}.get(decided, decided)
        rows.append([
            row.label, row.baseline, d.count, d.mean, interval_text(*d.interval), d.p_value, d.sign_flip_p_value,
            words + ("" if row.complete else ", incomplete"),
        ])  # fmt: skip
    heading = f"{quantity.title}, {quantity.unit}" if quantity.unit else quantity.title
    return table((heading, "minus", "pairs", "mean", "95 % interval", "p", "p of sign flips", "says"), rows)


def _sentence(row: Compared, unit: str) -> str:
    d = row.difference
    interval = interval_text(*d.interval) if d.count > 1 else "(one pair: no interval)"
    return f"{row.label} − {row.baseline}: {shown(d.mean)} {unit} {interval}, {d.count} pair{'s' * (d.count != 1)}."


def _have_baselines(runs: RunSet) -> bool:
    return any(baseline is not None for baseline in runs.baselines)


COMPARISON = Question(Comparison, measure, section, _have_baselines, reads_models=False)
