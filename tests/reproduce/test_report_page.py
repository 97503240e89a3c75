import json
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from report_results import HOSTILE, claims, data_of, result, written

from natattn.errors import UserError
from natattn.report.page import cell_view
from natattn.report.table import Estimate, StudyTable
from natattn.reproduce.report import MOST_POINTS, RunView, read_views, render_report, runs_of, write_report
from natattn.reproduce.results import StudyResult
from natattn.tracking import Record
from natattn.tracking.metrics_file import MetricsFile

MakeRun = Callable[..., Path]


def embedded(views: Sequence[RunView], base: Path) -> str:
    """The JSON that a page of these runs carries."""
    page = render_report("t", [], {}, views, base=base, all_runs=len(views))
    return re.search(r'id="run-data">(.*?)</script>', page, re.DOTALL)[1]


@pytest.fixture
def page(make_run: MakeRun, tmp_path: Path) -> Path:
    """A page beside run folders with odd names."""
    runs = [make_run(f"runs/{name}", seed=seed) for seed, name in enumerate(("0 #a?b", "1_ü%20:x", "2'\"<b>"))]
    (tmp_path / "pages").mkdir()
    write_report(tmp_path / "pages" / "page.html", f"Title {HOSTILE}", [result(runs)], claims())
    return tmp_path / "pages" / "page.html"


def test_nothing_from_data_becomes_markup(page: Path) -> None:
    elements = written(page).elements
    assert len([tag for tag, _ in elements if tag == "script"]) == 2  # the data, and the page's own
    assert all(found["src"].startswith("data:image/png") for tag, found in elements if tag == "img")
    assert not [name for _, found in elements for name in found if name.startswith("on")]
    assert not [tag for tag, _ in elements if tag == "b"]
    assert HOSTILE in written(page).shown


def test_embedded_data_survive_and_end_no_script(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(label=HOSTILE, config={"optim": {"name": HOSTILE, "rate": math.nan}})
    other = make_run("other", config={"optim": {"name": "x", "rate": 0.1}})
    text = embedded(read_views([run, other], tmp_path), tmp_path)
    assert not set("<>&\u2028\u2029") & set(text)
    second, first = json.loads(text)  # in the order of their labels
    assert first["config"]["optim.name"] == HOSTILE
    assert (first["config"]["optim.rate"], second["config"]["optim.rate"]) == ("NaN", "0.1")
    assert "train.steps" not in first["config"], "keys that all runs share are left out"


def test_links_are_relative_and_lead_to_the_runs(page: Path) -> None:
    links = [link for link in written(page).links() if not link.startswith("#")]
    assert len(links) == 4 * 3 + 2 + 3 * 3
    for link in links:
        assert link.startswith("../runs/")
        assert (page.parent / unquote(link) / "run.json").is_file()
    assert {run["address"] for run in data_of(page)} == set(links)
    assert str(page.parent.parent) not in page.read_text("utf-8"), "no path of this machine"


def test_anchors_lead_somewhere(page: Path) -> None:
    found = written(page)
    names = {attributes.get("id") for _, attributes in found.elements}
    anchors = [unquote(link[1:]) for link in found.links() if link.startswith("#")]
    assert {"claims", "compare", "claim-R1"} <= set(anchors)
    assert set(anchors) <= names


def test_the_page_loads_nothing(page: Path) -> None:
    text = re.sub(r'src="data:[^"]*"', "", page.read_text("utf-8"))
    assert "http:" not in text
    assert "https:" not in text
    elements = written(page).elements
    assert not {"link", "iframe", "object", "embed", "base", "form"} & {tag for tag, _ in elements}
    loaded = [found[name] for _, found in elements for name in ("src", "srcset", "data", "poster") if name in found]
    assert all(str(address).startswith("data:image/png;base64,") for address in loaded)


def test_claims_with_verdicts_and_those_without(page: Path) -> None:
    text = page.read_text("utf-8")
    at = [text.index(f'id="claim-{name}"') for name in ("R1", "R2", "R3", "K&#39;3")]
    assert at == sorted(at)
    parts = [text[start:end] for start, end in zip(at, [*at[1:], text.index('id="study-study-small"')], strict=True)]
    assert "? inconclusive</span></h3>" in parts[0]
    assert "✓ supported</span></td>" in parts[0]
    assert "✗ refuted</span></h3>" in parts[1]
    assert "= no effect</span></h3>" in parts[2]
    assert parts[2].index("Not measured here") > 0
    assert 'class="badge' not in parts[3]
    assert "a &lt; b" in parts[3]
    assert "2 refuted" not in text


def test_cells_show_what_their_interval_supports_and_keep_every_digit() -> None:
    estimate = cell_view(Estimate(-0.0661, -0.0721, -0.0601), 4)
    assert estimate.text == "−0.0661 [−0.0721, −0.0601]"
    assert estimate.attributes == {
        "class": "number", "data-value": "-0.0661", "title": "-0.0661 [-0.0721, -0.0601]"
    }  # fmt: skip
    keys = [cell_view(value, 4).attributes["data-value"] for value in (np.float64(0.5), math.nan, -math.inf)]
    assert keys == ["0.5", "—", "-Infinity"]
    assert (cell_view(None, 4).text, cell_view(None, 4).attributes) == ("—", {"class": "short"})


def test_many_runs_of_a_row_wait_behind_a_click(page: Path) -> None:
    assert "<details><summary>9 runs</summary>" in page.read_text("utf-8")


def test_missing_runs_are_named_and_do_not_end_the_page(make_run: MakeRun, tmp_path: Path) -> None:
    runs = (make_run("there"), tmp_path / "gone")
    table = StudyTable("t", "t", "", ("a",), ((1,),), (runs,))
    write_report(tmp_path / "page.html", "t", [StudyResult("s", "b", "t", {}, tables=(table,))], {})
    gone, there = data_of(tmp_path / "page.html")
    assert gone["label"] == "gone · broken"
    assert "run.json: No such file" in gone["status"]
    assert str(tmp_path) not in gone["status"]
    assert there["label"] == "there · standard (adamw) vs natural (aif) · seed 0"


def test_curves_are_thinned_with_both_ends_and_without_what_is_no_number(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(steps=600, evaluations=600)
    with MetricsFile(run / "metrics.jsonl") as file:
        file.log([Record(600, "natural", "validation/loss", 3.25, 1.0)])
        file.log([Record(601, "natural", "validation/loss", math.nan, 1.0)])
    (view,) = read_views([run], tmp_path)
    standard, natural = view.arms
    assert len(natural.steps) == len(natural.losses) == MOST_POINTS
    assert (natural.steps[0], natural.steps[-1], natural.losses[-1]) == (0, 600, 3.25)
    assert natural.steps == sorted(set(natural.steps))
    assert (standard.reference, natural.reference) == (True, False)
    json.loads(embedded([view, view], tmp_path))


def test_keys_that_are_younger_than_a_run_do_not_differ(make_run: MakeRun, tmp_path: Path) -> None:
    old = make_run("old")
    new = make_run("new", config={"stabilisers": {"qk_norm": False}, "optim": {"placebo": None}})
    assert [run["config"] for run in json.loads(embedded(read_views([old, new], tmp_path), tmp_path))] == [{}, {}]


def test_a_page_carries_so_many_runs_and_says_so(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("natattn.reproduce.report.MOST_RUNS", 2)
    runs = [make_run(f"runs/{number}", steps=10, evaluations=2) for number in range(3)]
    write_report(tmp_path / "page.html", "t", [result(runs)], {})
    assert len(data_of(tmp_path / "page.html")) == 2
    assert "Here are 2 of the 3 runs that this page links to" in written(tmp_path / "page.html").shown


def test_runs_are_counted_once(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run()
    monkeypatch.chdir(run.parent)
    assert runs_of([result([run, Path(run.name)])]) == [run]


def test_long_values_are_cut_and_still_told_apart(make_run: MakeRun, tmp_path: Path) -> None:
    runs = [make_run(name, config={"data": {"train": ["x" * 5000, name]}}) for name in ("a", "b")]
    first, second = (view.config["data.train"] for view in read_views(runs, tmp_path))
    assert len(first) < 300
    assert first != second


def test_a_page_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^[^\n]*page.html: cannot be written: [^\n]*$"):
        write_report(tmp_path / "nowhere" / "page.html", "t", [], {})
