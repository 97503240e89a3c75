"""The report of studies: one page that opens offline, with every number linked to the runs that it came from."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from natattn.analysis.runs import RunSummary
from natattn.errors import UserError
from natattn.report import html as report_cells
from natattn.report.html import study_table
from natattn.report.page import document, escaped, fact_list, picture
from natattn.reproduce import report_ledger, side_by_side
from natattn.reproduce.claims import Claim
from natattn.reproduce.ledger import by_claim
from natattn.reproduce.report_ledger import ledger
from natattn.reproduce.results import StudyResult, overall
from natattn.reproduce.run_views import MOST_RUNS, RunView, read_views
from natattn.reproduce.side_by_side import comparison
from natattn.storage.atomic import replacing

STYLE = """
.caption { color: var(--faint); font-size: 0.85rem; max-width: 46rem; margin: 0.2rem 0 0.5rem; white-space: pre-line; }
.warning { border-left: 4px solid #d55e00; background: var(--panel); padding: 0.5rem 1rem; margin: 1rem 0; }
.warning ul { margin: 0.2rem 0; padding-left: 1.2rem; overflow-wrap: anywhere; } .warning summary { font-weight: 600; }
.wide { overflow-x: auto; margin: 0.4rem 0 1rem; } body { max-width: 80rem; }
.wide th { vertical-align: bottom; white-space: normal; } .sortable td:not([class]) { min-width: 11rem; }
"""
MOST_LINES = 12  # of what is missing, before the rest waits behind a click


def write_report(
    path: Path,
    title: str,
    results: Sequence[StudyResult],
    claims: Mapping[str, Claim],
    *,
    known: Sequence[RunSummary] = (),
) -> None:
    """Write the page of the studies: claims with verdicts, tables, pictures, what is missing, and runs side by side.

    The page loads nothing. Its links to run folders are relative to its own folder, so that they hold where both are
    moved together; runs that are not there, or are broken, are linked and said to be so.

    Args:
        path: of the page; its folder must be there.
        claims: the ledger, {id: claim}; empty for a page about runs alone.
        known: runs that were read already, and need not be read again.

    Raises: UserError where it cannot be written; ValueError for a finding of a claim that is not in the ledger.
    """
    folders = runs_of(results)
    views = read_views(folders[:MOST_RUNS], path.parent, known)
    page = render_report(title, results, claims, views, base=path.parent, runs=len(folders))
    try:
        with replacing(path) as temporary:
            # Names of files need not be text: what cannot be written is a question mark.
            temporary.write_bytes(page.encode("utf-8", "replace"))
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}") from error


def render_report(
    title: str,
    results: Sequence[StudyResult],
    claims: Mapping[str, Claim],
    views: Sequence[RunView],
    *,
    base: Path,
    runs: int,
) -> str:
    """The page as text.

    Args:
        views: of the runs that are compared side by side.
        base: the folder that the page lies in.
        runs: how many the page links to; some of them may have no view.
    """
    claims_part, runs_part = ledger(results, claims, base), comparison(views, runs)
    links = [("claims", "Claims")] if claims_part else []
    links += [(study_anchor(result), result.title) for result in results]
    links += [("compare", "Two runs side by side")] if runs_part else []
    navigation = "".join(f'<a href="#{escaped(anchor)}">{escaped(name)}</a>' for anchor, name in links)
    body = (
        fact_list(_facts(results, claims))
        + (f"<nav>{navigation}</nav>" if len(links) > 1 else "")
        + claims_part
        + "".join(_study(result, base) for result in results)
        + runs_part
    )
    style = STYLE + report_cells.STYLE + report_ledger.STYLE + side_by_side.STYLE
    return document(title, body, style=style, script=side_by_side.SCRIPT)


def runs_of(results: Iterable[StudyResult]) -> list[Path]:
    """Every run folder that the results name, once, in the order in which they do."""
    found: dict[Path, Path] = {}
    for result in results:
        of_findings = (finding.runs for finding in result.findings)
        of_tables = (runs for table in result.tables for runs in table.runs)
        for run in (run for runs in (*of_findings, *of_tables) for run in runs):
            found.setdefault(run.absolute(), run)
    return list(found.values())


def study_anchor(result: StudyResult) -> str:
    """What links to a study on the page end with."""
    name = f"study-{result.name}-{result.budget}"
    return "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in name)


def _facts(results: Sequence[StudyResult], claims: Mapping[str, Claim]) -> dict[str, str]:
    """For the top of the page; nothing where no claim is tested."""
    if not claims:
        return {}
    measured = [findings for _, findings in by_claim(results, claims) if findings]
    verdicts = Counter(map(overall, measured))
    return {
        "studies": ", ".join(f"{result.name} ({result.budget})" for result in results),
        "claims": ", ".join(f"{count} {verdict}" for verdict, count in sorted(verdicts.items())) or "none measured",
        "not measured here": str(len(claims) - len(measured)),
        "runs": str(len(runs_of(results))),
    }


def _study(result: StudyResult, base: Path) -> str:
    budget = {"study": f"{result.name}, at budget {result.budget}"} if result.budget else {}
    tables = "".join(study_table(table, base) for table in result.tables)
    pictures = "".join(picture(each.name, each.caption, each.png) for each in result.pictures)
    failed = [f"failed: {line}" for line in result.failures]
    return (
        f'<h2 id="{study_anchor(result)}">{escaped(result.title)}</h2>{fact_list(budget | result.facts)}'
        f"{_missing([*result.missing, *failed])}{pictures}{tables}"
    )


def _missing(lines: Sequence[str]) -> str:
    if not lines:
        return ""
    items = "".join(f"<li>{escaped(line)}</li>" for line in lines)
    words = f"Missing: {len(lines)}"
    content = (
        f"<strong>{words}</strong><ul>{items}</ul>"
        if len(lines) <= MOST_LINES
        else f"<details><summary>{words}</summary><ul>{items}</ul></details>"
    )
    return f'<div class="warning" role="note">{content}</div>'
