"""Pages that are made of hostile runs: every string of theirs is text, and the one script is the program's own."""

import base64
import hashlib
import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from property_tools import run

from natattn.report.page import render_analysis
from natattn.report.section import HeadMap, Picture, Section, table
from natattn.report.table import Badge, Estimate, Finding, StudyTable
from natattn.reproduce.claims import Claim
from natattn.reproduce.report import read_views, render_report
from natattn.reproduce.results import StudyResult
from natattn.tracking import Record
from natattn.tracking.metrics_file import MetricsFile

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'><svg/onload=alert(3)> <!-- ]]> javascript:x"
WORD = "zzzevil"  # in every hostile string, so that it is seen to have come through as text
HOSTILE = EVIL + WORD
# Elements that the pages are made of; none that loads or runs anything but the page's own script.
KNOWN = {
    "html", "head", "meta", "title", "style", "body", "h1", "h2", "h3", "p", "a", "nav", "dl", "dt", "dd", "div",
    "span", "table", "thead", "tbody", "tr", "th", "td", "ul", "li", "figure", "figcaption", "img", "script",
    "section", "svg", "details", "summary", "strong", "select", "label", "pre",
}  # fmt: skip
LINKS = {"href", "src"}


class Page(HTMLParser):
    """What a browser would find in a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.text = ""
        self.wrong: list[str] = []
        self.policy = ""
        self._inside: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        if tag not in KNOWN:
            self.wrong.append(f"<{tag}>")
        for name, value in attributes.items():
            if name.startswith("on") or not name.isascii() or any(letter in name for letter in "\"'<>"):
                self.wrong.append(f"{tag} {name}={value}")
            if name in LINKS and not (value or "").startswith(
                ("#", "data:image/png;base64,", ".", "run", "%3C", "claim")
            ):
                self.wrong.append(f"{tag} {name}={value}")
            if name == "style" and "url" in (value or ""):
                self.wrong.append(f"{tag} {name}={value}")
        if tag == "script":
            self.scripts.append((attributes, ""))
            self._inside.append(tag)
        if attributes.get("http-equiv") == "Content-Security-Policy":
            self.policy = attributes.get("content") or ""

    def handle_endtag(self, tag: str) -> None:
        if self._inside and tag == self._inside[-1]:
            self._inside.pop()

    def handle_data(self, data: str) -> None:
        if self._inside:
            attributes, before = self.scripts[-1]
            self.scripts[-1] = attributes, before + data
        else:
            self.text += data

    def handle_comment(self, data: str) -> None:
        self.wrong.append(f"<!--{data}")


def check(text: str, *, data: bool) -> Page:
    """Nothing hostile is anything but text."""
    page = Page(text)
    assert not page.wrong, page.wrong
    running = [content for attributes, content in page.scripts if attributes.get("type") != "application/json"]
    assert len(running) == 1
    assert WORD not in running[0]
    digest = base64.b64encode(hashlib.sha256(running[0].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in page.policy
    assert "default-src 'none'" in page.policy
    held = [content for attributes, content in page.scripts if attributes.get("type") == "application/json"]
    assert len(held) == data
    for content in held:
        assert "<" not in content
        json.loads(content)
    assert WORD in page.text
    return page


def hostile(value: Any, keep: frozenset[str] = frozenset()) -> Any:
    """Every string in it, and every key that may be any, is hostile."""
    if isinstance(value, dict):
        return {key: inner if key in keep else hostile(inner, keep) for key, inner in value.items()}
    return HOSTILE if isinstance(value, str) else value


def test_what_is_hostile_would_be_seen():
    assert len(Page(EVIL).wrong) >= 2
    assert Page('<a href="javascript:alert(1)" onclick="x">').wrong == ["a href=javascript:alert(1)", "a onclick=x"]


@pytest.fixture
def hostile_run(make_run, tmp_path: Path) -> Path:
    """A run folder with a script in every string, its own name among them."""
    arms = (f"standard{HOSTILE}".replace("/", "|"), f"natural{HOSTILE}")
    folder = make_run(
        "run <script>alert(5)<|script>", arms=arms, steps=20, evaluations=2, config={HOSTILE: {HOSTILE: [HOSTILE, 1]}}
    )
    path = folder / "run.json"
    facts = json.loads(path.read_text())
    facts = hostile(facts, frozenset({"status", "reference", "candidate", "unit"})) | {"leaky": [arms[1]]}
    path.write_text(json.dumps(facts))
    with MetricsFile(folder / "metrics.jsonl") as file:
        names = (f"validation/{HOSTILE}", f"test/{HOSTILE}", "validation/accuracy", HOSTILE)
        file.log([Record(20, arms[1], name, 0.5, 1.0) for name in names])
    return folder


def test_a_report_of_a_hostile_run_is_text(hostile_run, make_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_run("run_good", steps=20, evaluations=2)
    broken = make_run("run_broken", steps=20, evaluations=2)
    (broken / "metrics.jsonl").write_text(HOSTILE + "\n")
    for folders in ([str(hostile_run)], [str(tmp_path)]):
        ended = run("report", *folders, "output=page.html")
        assert ended.code == 0, ended
        several = folders == [str(tmp_path)]  # of one run there are no two to compare
        page = check((tmp_path / "page.html").read_text(), data=several)
        assert "LEAKY" in page.text
    (held,) = (content for attributes, content in page.scripts if attributes.get("id") == "run-data")
    assert any(HOSTILE in arm["name"] for view in json.loads(held) for arm in view["arms"])


def test_views_keep_what_they_hold_through_the_page(hostile_run, tmp_path):
    views = read_views([hostile_run], tmp_path)
    text = render_report(HOSTILE, [], {}, [*views, *views], base=tmp_path, all_runs=1)
    (held,) = (content for attributes, content in check(text, data=True).scripts if attributes.get("id") == "run-data")
    assert json.loads(held)[0]["label"] == views[0].label


def test_a_page_of_an_analysis_is_text():
    section = Section(
        name=HOSTILE,
        title=HOSTILE,
        findings=(HOSTILE,),
        tables=(table([HOSTILE], [[HOSTILE], [f"torch.{HOSTILE}"], [1.5], [None]]),),
        maps=(HeadMap(HOSTILE, HOSTILE, (0, 1), ((0.5, float("nan")), (1.0, 2.0))),),
        pictures=(Picture(HOSTILE, HOSTILE, table([HOSTILE], [[1]]), b"png"),),
    )
    check(render_analysis(HOSTILE, {HOSTILE: HOSTILE}, [section]), data=False)


def test_a_page_of_studies_is_text(tmp_path):
    runs = (Path(f"run {HOSTILE}".replace("/", "|")),)
    finding = Finding(
        claim=HOSTILE, study=HOSTILE, what=HOSTILE, where=HOSTILE, estimate=Estimate(1.0, 0.5, 1.5), unit=HOSTILE,
        count=3, p_value=0.5, verdict="supported", note=HOSTILE, runs=runs,
    )  # fmt: skip
    cells = (HOSTILE, 1, 2.5, None, Estimate(1.0), Badge("refuted"))
    result = StudyResult(
        name=HOSTILE, budget=HOSTILE, title=HOSTILE, facts={HOSTILE: HOSTILE}, findings=(finding,),
        tables=(StudyTable(HOSTILE, HOSTILE, HOSTILE, (HOSTILE,) * 6, (cells,), (runs,)),),
        pictures=(Picture(HOSTILE, HOSTILE, table([HOSTILE], [[1]]), b"png"),), missing=(HOSTILE,), failures=(HOSTILE,),
    )  # fmt: skip
    claim = Claim(id=HOSTILE, statement=HOSTILE, formula=HOSTILE, definition=HOSTILE, source=HOSTILE, study=HOSTILE)
    text = render_report(HOSTILE, [result], {HOSTILE: claim, f"2{HOSTILE}": claim}, [], base=tmp_path, all_runs=1)
    check(text, data=False)
