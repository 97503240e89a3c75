"""For tests of the report's page: results with every kind of cell and verdict and names that mean something to HTML."""

import json
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path

from natattn.report.figures import drawn
from natattn.report.section import Picture, table
from natattn.report.table import Badge, Estimate, Finding, StudyTable
from natattn.reproduce.claims import Claim
from natattn.reproduce.results import StudyResult

HOSTILE = "<script>alert(1)</script>\"'`&amp;\u2028</script><!--<img src=x onerror=alert(2)>"
ARMS = ("down", "far down", "up", "unknown", "nothing")
MEASURED = (("R1", "supported"), ("R1", "refuted"), ("R2", "refuted"), ("R3", "no effect"))
HEADINGS = ("arm", "difference", "steps", "text", HOSTILE)
VALUES = (-0.066, -1.5, 0.25)


def claims() -> dict[str, Claim]:
    return {
        name: Claim(name, f"{name} is so. {HOSTILE}", f"a < b {HOSTILE}", f"b is small {HOSTILE}", "paper A", "study")
        for name in ("R1", "R2", "R3", "K'3")
    }


def result(runs: Sequence[Path]) -> StudyResult:
    """Of a study that measured three of the four claims."""

    def finding(claim: str, verdict: str, value: float = -0.066) -> Finding:
        return Finding(
            claim, "study", f"arm − other {HOSTILE}", HOSTILE, Estimate(value, value - 0.006, value + 0.006),
            "nats/token", 5, verdict, p_value=0.0123, note=HOSTILE, runs=tuple(runs),
        )  # fmt: skip

    rows = (
        (ARMS[0], Estimate(VALUES[0], -0.072, -0.06), 1600, "−0.066 (2 of 3)", Badge("supported")),
        (ARMS[1], Estimate(VALUES[1], -1.9, -1.1), 400, "−1.5", Badge("refuted")),
        (ARMS[2], Estimate(VALUES[2], 0.2, 0.3), 12, "1,250", Badge("no effect")),
        (ARMS[3], Estimate(float("nan")), None, "—", Badge("inconclusive")),
        (ARMS[4], None, None, None, None),
    )
    png = drawn(lambda figure: figure.subplots(), (1.0, 1.0))
    return StudyResult(
        name="study",
        budget="small",
        title=f"A study {HOSTILE}",
        facts={f"data {HOSTILE}": HOSTILE},
        findings=tuple(finding(*each) for each in MEASURED),
        tables=(
            StudyTable("differences", f"Differences {HOSTILE}", HOSTILE, HEADINGS, rows,
                       (tuple(runs[:2]), tuple(runs) * 3, (), (), ())),
        ),
        pictures=(Picture(HOSTILE, HOSTILE, table(("x",), [(1,)]), png),),
        missing=(f"no data {HOSTILE}",),
    )  # fmt: skip


class Page(HTMLParser):
    """What a browser would make of it: elements with their attributes, and the text that is shown."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.shown = ""
        self.inside: str | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))
        self.inside = tag

    def handle_endtag(self, tag: str) -> None:
        self.inside = None

    def handle_data(self, data: str) -> None:
        if self.inside not in ("script", "style"):
            self.shown += data

    def links(self) -> list[str]:
        return [str(found["href"]) for tag, found in self.elements if tag == "a"]


def written(path: Path) -> Page:
    return Page(path.read_text(encoding="utf-8"))


def data_of(path: Path) -> list[dict]:
    return json.loads(re.search(r'id="run-data">(.*?)</script>', path.read_text("utf-8"), re.DOTALL)[1])
