"""The section on differences: what the protocol's statistics say of arms and runs against their baselines."""

import math
from collections.abc import Sequence

from natattn.analysis.differences import PAIRED_QUANTITIES
from natattn.analysis.run_set import RunSet, Treatment, pairs
from natattn.analysis.settings import AnalyzeSettings
from natattn.report.section import Advance, Cell, Section, Table, interval_text, shown, table
from natattn.statistics.paired import Difference, differences_of, verdict


def comparison_section(runs: RunSet, settings: AnalyzeSettings, advance: Advance) -> Section:
    """Differences to the baseline: final loss, area, time to target, pattern stability, step time."""
    compared = [(t, other) for t, other in zip(runs.treatments, runs.baselines, strict=True) if other is not None]
    tables, findings = [], []
    run_unit = runs.unit
    for key, quantity in PAIRED_QUANTITIES.items():
        unit = quantity.unit_in(run_unit)
        samples, complete = [], []
        for treatment, baseline in compared:
            paired = pairs(treatment, baseline)
            values = [quantity.difference(*mine, *theirs) for mine, theirs in paired]
            known = [value for value in values if value is not None and math.isfinite(value)]
            samples.append(known)
            complete.append(len(known) == len(values) == len(treatment.runs) == len(baseline.runs))
        advance(1)
        if not any(samples):
            continue
        found = differences_of(samples)
        tables.append(_comparison_table(quantity.title, unit, compared, found, complete, settings.indifference))
        if key == "final_loss":
            findings += [
                _of_difference(t, other, difference, unit)
                for (t, other), difference in zip(compared, found, strict=True)
                if difference.count
            ]
    unpaired = [t.label for t, other in compared if not pairs(t, other)]
    if unpaired:
        findings.append(f"Not paired (other seeds, data or initial weights): {'; '.join(unpaired[:6])}.")
    findings.append(
        "Intervals and p-values are Holm-adjusted over the rows of a table: what is adjusted is whether they exclude "
        "zero. A verdict `supported` also needs the "
        "placebos, which this page does not know: it says `below` or `above` where the interval excludes zero."
    )
    return Section("comparison", "Differences", tuple(findings), tuple(tables))


def _comparison_table(
    name: str, unit: str, compared: Sequence[tuple[Treatment, Treatment]], found: Sequence[Difference],
    complete: Sequence[bool], indifference: float,
) -> Table:  # fmt: skip
    rows: list[list[Cell]] = []
    for (treatment, baseline), difference, whole in zip(compared, found, complete, strict=True):
        said = verdict(difference, indifference=indifference if unit else 0.0, complete=whole)
        words = {"supported": "below", "refuted": "above"}.get(said, said)
        rows.append([
            treatment.label, baseline.label, difference.count, difference.mean, interval_text(*difference.interval),
            difference.p_value, difference.sign_flip_p_value, words + ("" if whole else ", incomplete"),
        ])  # fmt: skip
    heading = f"{name}, {unit}" if unit else name
    return table((heading, "minus", "pairs", "mean", "95 % interval", "p", "p of sign flips", "says"), rows)


def _of_difference(treatment: Treatment, baseline: Treatment, difference: Difference, unit: str) -> str:
    interval = interval_text(*difference.interval) if difference.count > 1 else "(one pair: no interval)"
    return (
        f"{treatment.label} − {baseline.label}: {shown(difference.mean)} {unit} {interval}, "
        f"{difference.count} pair{'s' * (difference.count != 1)}."
    )
