"""What a study found: the findings, tables and pictures that terminal, files and pages are made of."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from natattn.report.section import Picture
from natattn.statistics.paired import Verdict, t_interval


@dataclass(frozen=True)
class Estimate:
    """A number with its interval; bounds of nan where there are too few repetitions for one."""

    value: float
    low: float = math.nan
    high: float = math.nan

    @classmethod
    def of_mean(cls, values: Sequence[float]) -> "Estimate":
        """The mean with its 95 % t interval; bounds of nan for fewer than two values, all nan for none."""
        centre, half = t_interval(values)
        return cls(centre, centre - half, centre + half)


@dataclass(frozen=True)
class Badge:
    """A verdict, as a cell of a table."""

    verdict: Verdict


Cell = str | int | float | Estimate | Badge | None


@dataclass(frozen=True)
class StudyTable:
    """Rows under headings, and behind each row the runs that it was made of.

    Attributes:
        name: of its files: letters, digits and underscores.
        title: one line.
        caption: what a reader must know: budget, definitions, what was adjusted.
        headings: of the columns.
        rows: numbers are rounded only where they are shown; None is not known.
        runs: for each row the folders of its runs; empty where there are none (as many entries as rows).
    """

    name: str
    title: str
    caption: str
    headings: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    runs: tuple[tuple[Path, ...], ...]


@dataclass(frozen=True)
class Finding:
    """One measurement that bears on a claim.

    Attributes:
        claim: its id in the ledger.
        study: the study that measured it.
        what: what was compared or measured, in words.
        where: the data or family of models that it holds for.
        estimate: the effect with the interval that belongs to the verdict.
        unit: of the effect; empty for a pure number.
        count: repetitions behind the interval: seeds, or models.
        verdict: by protocol 7.
        p_value: adjusted as its table's rule says; None where no test was made.
        note: what bars or explains the verdict.
        runs: folders of the runs behind it.
        against: what the claim compares the effect with; the verdict is of the effect less this.
    """

    claim: str
    study: str
    what: str
    where: str
    estimate: Estimate
    unit: str
    count: int
    verdict: Verdict
    p_value: float | None = None
    note: str = ""
    runs: tuple[Path, ...] = ()
    against: float = 0.0


@dataclass(frozen=True)
class StudyResult:
    """All that one study found at one budget.

    Attributes:
        name: of the study.
        budget: it was run at.
        title: one line from the study's file.
        facts: what was run, for the top of a page: {name: value}.
        findings: every measurement that bears on a claim.
        tables: in the order in which they are shown.
        pictures: with their numbers.
        missing: one line for each thing that is not there, such as runs whose data was not given.
        failures: one line for each job that failed.
    """

    name: str
    budget: str
    title: str
    facts: dict[str, str]
    findings: tuple[Finding, ...] = ()
    tables: tuple[StudyTable, ...] = ()
    pictures: tuple[Picture, ...] = ()
    missing: tuple[str, ...] = ()
    failures: tuple[str, ...] = ()


def overall(findings: Sequence[Finding]) -> Verdict:
    """What all measurements of one claim say together.

    The verdict that all share. Where they differ: ``refuted`` if one refutes it and none supports it, for a claim is
    general and one counterexample is enough; else ``inconclusive``.

    Raises: ValueError for no findings.
    """
    if not findings:
        raise ValueError("no findings")
    said = {finding.verdict for finding in findings}
    if len(said) == 1:
        return said.pop()
    return "refuted" if "refuted" in said and "supported" not in said else "inconclusive"


@dataclass(frozen=True)
class AnalysisResult:
    """What `natattn analyze` said of one model or one set of runs, for a judge to read.

    Attributes:
        name: of the analysis in the study's file.
        where: the data or family of models, in words.
        seed: of the run; None for a set of runs or a pretrained model.
        steps: how long the model was trained; None as for ``seed``.
        sections: as in analysis.json: {section: {"findings", "tables": [{"headings", "rows"}], "maps", …}}.
        runs: folders of the runs that were looked at.
        seeds: how many different ones a set of runs has; None where that is not known.
    """

    name: str
    where: str
    seed: int | None
    steps: int | None
    sections: Mapping[str, Mapping[str, Any]]
    runs: tuple[Path, ...] = ()
    seeds: int | None = None
