"""Findings sorted by the claims that they bear on, and which of a claim's says the most."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import get_args

from natattn.report.cells import half_width
from natattn.report.table import Finding
from natattn.reproduce.claims import Claim
from natattn.reproduce.results import StudyResult, overall
from natattn.statistics.paired import Verdict

VERDICTS: tuple[Verdict, ...] = get_args(Verdict)


def by_claim(results: Sequence[StudyResult], claims: Mapping[str, Claim]) -> list[tuple[Claim, tuple[Finding, ...]]]:
    """Every claim in its order with its findings, which may be none.

    Raises: ValueError for a finding of a claim that is not there: it would be lost without a word.
    """
    found: dict[str, list[Finding]] = {claim: [] for claim in claims}
    for result in results:
        for finding in result.findings:
            if finding.claim not in found:
                raise ValueError(f"study {result.name}: a finding of {finding.claim!r}, which the ledger does not have")
            found[finding.claim].append(finding)
    return [(claim, tuple(found[name])) for name, claim in claims.items()]


def claims_of(results: Sequence[StudyResult], claims: Mapping[str, Claim]) -> dict[str, Claim]:
    """The claims that these studies test or have found something of; of all studies also those that none tests."""
    names = {result.name for result in results}
    if names >= {claim.study for claim in claims.values()} - {""}:
        return dict(claims)
    found = {finding.claim for result in results for finding in result.findings}
    return {name: claim for name, claim in claims.items() if claim.study in names or name in found}


def standardised(finding: Finding) -> float:
    """The effect, less what the claim says that it is, in half-widths of its interval; nan without an interval.

    Beyond ±1 a symmetric interval excludes what it is compared with (``Finding.against``).
    """
    half = half_width(finding.estimate)
    return (finding.estimate.value - finding.against) / half if half > 0 else math.nan


def strongest(findings: Sequence[Finding]) -> Finding:
    """The finding that says the most for the verdict of all.

    Of those that have a value, and of these of those that share that verdict, if any do: the largest ``standardised``;
    of ``refuted`` one without an interval before all, for that is a counterexample; of ``no effect`` the one with the
    most repetitions. The first of equals.

    Raises: ValueError for no findings.
    """
    together = overall(findings)
    known = [finding for finding in findings if not math.isnan(finding.estimate.value)] or list(findings)
    kept = [finding for finding in known if finding.verdict == together] or known

    def weight(finding: Finding) -> float:
        size = abs(standardised(finding))
        if together == "no effect":
            return float(finding.count)
        if math.isnan(size):
            return math.inf if together == "refuted" else -1.0
        return size

    return max(kept, key=weight)


def tally(findings: Sequence[Finding]) -> str:
    """How many say what: 2 supported, 1 refuted."""
    counts = Counter(finding.verdict for finding in findings)
    return ", ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS if counts[verdict])
