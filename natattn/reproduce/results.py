"""The result of a study: the findings, tables and pictures that terminal, files and pages are made of."""

from collections.abc import Sequence
from dataclasses import dataclass

from natattn.report.section import Picture
from natattn.report.table import Finding, StudyTable
from natattn.statistics.paired import Verdict


@dataclass(frozen=True)
class StudyResult:
    """Everything that one study found at one budget.

    Attributes:
        name: of the study.
        budget: it was run at.
        title: one line from the study's file.
        facts: what was run, for the top of a page: {name: value}.
        findings: every measurement that bears on a claim.
        tables: in the order in which they are shown.
        pictures: with their numbers.
        missing: one line for each missing thing, such as runs whose data was not given.
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
    """Return the verdict of all measurements of one claim together.

    This is the verdict that all share. If they differ, it is ``refuted`` if one refutes the claim and none supports it,
    because a claim is general and one counterexample is enough; else ``inconclusive``.

    Raises: ValueError for no findings.
    """
    if not findings:
        raise ValueError("no findings")
    said = {finding.verdict for finding in findings}
    if len(said) == 1:
        return said.pop()
    return "refuted" if "refuted" in said and "supported" not in said else "inconclusive"
