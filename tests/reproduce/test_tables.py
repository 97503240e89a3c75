import csv
import io
import math
import os
import re
import shutil
import subprocess
from pathlib import Path
from urllib.parse import unquote

import pytest
from rich.console import Console

from natattn.report.table import Badge, Estimate, Finding, Table
from natattn.report.writers import to_csv, to_latex, to_markdown, to_terminal, write_tables
from natattn.reproduce.claims import CLAIMS
from natattn.reproduce.ledger import ledger_table, summary_table
from natattn.reproduce.results import StudyResult

INF, NAN = math.inf, math.nan


def table(rows=(), headings=("arm", "effect", "steps", "verdict"), runs=None, **options) -> Table:
    given = {"name": "small", "title": "A title", "caption": "A caption."} | options
    return Table(**given, headings=headings, rows=tuple(rows), runs=runs or tuple(() for _ in rows))


ROWS = (
    ("natural_muon", Estimate(-0.0658123456789, -0.0719, -0.0597), 1600, Badge("supported")),
    ("a|b & c_d%", Estimate(0.25), None, Badge("inconclusive")),
    ("[0.1, 0.2] $x$ #1 {y} ~ ^ \\", None, 12, Badge("no effect")),
)


# The four forms.


def cells_of(line: str) -> list[str]:
    """Cells of a line of a pipe table, as a reader of Markdown parts them."""
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def test_markdown_has_a_cell_for_every_heading_whatever_is_in_it() -> None:
    lines = to_markdown(table(ROWS), Path()).splitlines()
    assert lines[0] == "### A title"
    body = lines[2:7]
    assert [len(cells_of(line)) for line in body] == [4] * 5
    assert cells_of(body[1]) == ["---", "---:", "---:", "---"]
    assert cells_of(body[2]) == ["natural_muon", "−0.0658 [−0.0719, −0.0597]", "1,600", "**supported**"]
    assert cells_of(body[3]) == [r"a\|b \& c_d%", "0.25", "—", "inconclusive"]
    assert lines[-1] == "A caption."


def test_markdown_links_runs_relative_to_its_page(tmp_path: Path) -> None:
    folder = tmp_path / "docs" / "results"
    runs = tuple(tmp_path / "outputs" / "a sweep (1)" / f"run_{place}" for place in range(8))
    hashed = (folder / "runs" / "abecb7232bce0696",)
    rows = (("a", 1.0), ("b", 2.0), ("c", 3.0))
    given = table(rows, ("arm", "loss"), (runs, hashed, ()))
    lines = to_markdown(given, folder).splitlines()
    assert cells_of(lines[2])[-1] == "runs"
    links = re.findall(r"\[([^]]+)\]\(([^)]+)\)", lines[4])
    assert [name for name, _ in links] == [f"run_{place}" for place in range(6)]
    assert cells_of(lines[4])[-1].endswith(" +2")
    assert [(folder / unquote(address)).resolve() for _, address in links] == list(runs[:6])
    assert not any("(" in address or " " in address for _, address in links)
    assert cells_of(lines[5])[-1] == "[abecb723](runs/abecb7232bce0696)"
    assert cells_of(lines[6])[-1] == ""
    assert str(tmp_path) not in "\n".join(lines)


def test_tables_without_runs_have_no_column_of_them() -> None:
    assert "runs" not in to_markdown(table(ROWS), Path())


def test_csv_gives_back_every_digit(tmp_path: Path) -> None:
    runs = ((tmp_path / "a", tmp_path / "b"), (), (tmp_path / "c",))
    read = list(csv.reader(io.StringIO(to_csv(table(ROWS, runs=runs)))))
    assert read[0] == ["arm", "effect", "effect low", "effect high", "steps", "verdict", "runs"]
    for (arm, effect, steps, badge), row, folders in zip(ROWS, read[1:], runs, strict=True):
        assert row[0] == arm
        if effect is None:
            assert row[1:4] == ["", "", ""]
        else:
            assert [float(cell) for cell in row[1:4]] == pytest.approx(
                [effect.value, effect.low, effect.high], rel=0, abs=0, nan_ok=True
            )
        assert row[4] == ("" if steps is None else str(steps))
        assert row[5] == badge.verdict
        assert [Path(path) for path in row[6].split(";") if path] == list(folders)
    relative = list(csv.reader(io.StringIO(to_csv(table(ROWS, runs=runs), tmp_path / "page"))))
    assert relative[1][-1] == "../a;../b"


def test_csv_keeps_line_breaks_quotes_and_what_is_no_number() -> None:
    rows = (('say "a,\nb"', 1e-17, INF), ("c", 0.1 + 0.2, -INF))
    read = list(csv.reader(io.StringIO(to_csv(table(rows, ("text", "x", "y"))))))
    assert read[1] == ['say "a,\nb"', "1e-17", "inf", ""]
    assert float(read[2][1]) == 0.1 + 0.2
    assert read[2][2] == "-inf"


def test_terminal_shows_brackets_that_are_no_markup() -> None:
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(to_terminal(table([*ROWS, ("[bold]x[/bold]", 0.5, 1, Badge("refuted"))])))
    text = console.export_text()
    for part in ("−0.0658 [−0.0719, −0.0597]", "[bold]x[/bold]", "refuted", "A title", "A caption.", "1,600"):
        assert part in text


def test_latex_is_a_booktabs_table() -> None:
    text = to_latex(table(ROWS, name="a_b1", title="50 % of it", caption="δ = 0.01."))
    assert r"\label{tab:a_b1}" in text
    assert r"\caption{50 \% of it. $\delta$ = 0.01.}" in text
    assert [text.count(rule) for rule in (r"\toprule", r"\midrule", r"\bottomrule")] == [1, 1, 1]
    assert r"\begin{tabular}{lrrl}" in text
    assert r"{}natural\_muon & $-$0.0658 [$-$0.0719, $-$0.0597] & 1,600 & supported \\" in text
    assert r"{}[0.1, 0.2] \$x\$ \#1" in text  # not read as an argument of the \\ before
    long = to_latex(
        table([("a sentence that is a good deal longer than a line of a column",) for _ in range(21)], ("x",))
    )
    assert r"\begin{longtable}{p{" in long


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no LaTeX here")
def test_latex_compiles(tmp_path: Path) -> None:
    findings = [
        Finding(name, "claims", claim.formula, "data", Estimate(-0.1, -0.3, 0.2), "nats/token", 5, "refuted", 0.01,
                claim.definition)
        for name, claim in CLAIMS.items()
    ]  # fmt: skip
    result = StudyResult("claims", "smoke", "a study", {}, tuple(findings))
    body = "\n".join(map(to_latex, (table(ROWS), ledger_table([result], CLAIMS), summary_table([], CLAIMS))))
    packages = (
        r"\usepackage[landscape]{geometry}\usepackage{longtable}\IfFileExists{booktabs.sty}{\usepackage{booktabs}}"
        r"{\let\toprule\hline\let\midrule\hline\let\bottomrule\hline}"
    )
    text = f"\\documentclass{{article}}{packages}\\begin{{document}}{body}\\end{{document}}"
    (tmp_path / "page.tex").write_text(text, encoding="utf-8")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "page.tex"]
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, errors="replace", timeout=120)
    assert found.returncode == 0, found.stdout[-2000:]


# Files.


def test_tables_are_written_in_three_forms(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "tables"
    given = table(ROWS, runs=((tmp_path / "runs" / "one",), (), ()))
    write_tables(folder, [given])
    assert sorted(path.name for path in folder.iterdir()) == ["small.csv", "small.md", "small.tex"]
    assert (folder / "small.md").read_text(encoding="utf-8") == to_markdown(given, folder)
    assert (folder / "small.tex").read_text(encoding="utf-8") == to_latex(given)
    assert (folder / "small.csv").read_bytes().decode() == to_csv(given, folder)
    assert not any(str(tmp_path) in path.read_text(encoding="utf-8") for path in folder.iterdir())
    write_tables(folder, [table(ROWS[:1])])
    assert (folder / "small.csv").read_text(encoding="utf-8").count("\n") == 2


def test_a_run_whose_name_is_no_text_is_linked_all_the_same(tmp_path: Path) -> None:
    run = tmp_path / os.fsdecode(b"r\xe9n")
    write_tables(tmp_path, [table(ROWS[:1], runs=((run,),))])
    assert "[r?n](r%E9n)" in (tmp_path / "small.md").read_text(encoding="utf-8")
    assert (tmp_path / "small.csv").read_text(encoding="utf-8").endswith(",r?n\n")


@pytest.mark.parametrize("names", [["../up"], [""], ["a b"], ["a/b"], ["same", "same"], ["Case", "case"]])
def test_names_that_are_no_files_are_refused_before_anything_is_written(tmp_path: Path, names) -> None:
    with pytest.raises(ValueError, match="name"):
        write_tables(tmp_path / "tables", [table(name="fine"), *(table(name=name) for name in names)])
    assert not (tmp_path / "tables").exists()


# The ledger.


FINDINGS = (
    Finding("R3", "claims", "aif − adamw", "text", Estimate(-0.1, -0.2, 0.1), "nats/token", 5, "inconclusive", 0.2,
            "few", (Path("runs/a"),)),
    Finding("R3", "claims", "aif − adamw", "code", Estimate(0.3, 0.2, 0.4), "nats/token", 5, "refuted", 0.001, "",
            (Path("runs/b"),)),
    Finding("P2", "theorems", "A(αX) = A(X)", "any", Estimate(0.5), "", 3, "refuted"),
)  # fmt: skip
RESULTS = [StudyResult("claims", "smoke", "a study", {}, FINDINGS)]


def test_the_ledger_has_a_row_for_every_finding_and_for_every_claim_without_one() -> None:
    found = ledger_table(RESULTS, CLAIMS)
    assert found.headings == ("claim", "statement", "what", "where", "effect", "unit", "n", "p", "verdict", "note")
    assert len(found.rows) == len(found.runs) == len(CLAIMS) + 1
    by_name = [(row[0], row[8]) for row in found.rows]
    assert [verdict for name, verdict in by_name if name == "R3"] == [Badge("inconclusive"), Badge("refuted")]
    assert {verdict for name, verdict in by_name if name not in ("R3", "P2")} == {"not measured"}
    place = [name for name, _ in by_name].index("R3")
    assert found.rows[place] == (
        "R3", CLAIMS["R3"].statement, "aif − adamw", "text", FINDINGS[0].estimate, "nats/token", 5, 0.2,
        Badge("inconclusive"), "few",
    )  # fmt: skip
    assert found.runs[place : place + 2] == ((Path("runs/a"),), (Path("runs/b"),))


def test_the_summary_has_a_row_for_every_claim() -> None:
    found = summary_table(RESULTS, CLAIMS)
    assert [row[0] for row in found.rows] == list(CLAIMS)
    rows = {row[0]: row for row in found.rows}
    assert rows["R3"][2:] == (
        Badge("refuted"), "1 refuted, 1 inconclusive", "aif − adamw (code)", FINDINGS[1].estimate, "nats/token", 5,
    )  # fmt: skip
    assert rows["P2"][2] == Badge("refuted")
    assert rows["A3"][2] == "not measured"
    assert found.runs[list(CLAIMS).index("R3")] == (Path("runs/b"),)


def test_findings_of_no_claim_are_not_dropped_without_a_word() -> None:
    claims = {name: claim for name, claim in CLAIMS.items() if name != "P2"}
    for make in (ledger_table, summary_table):
        with pytest.raises(ValueError, match="P2"):
            make(RESULTS, claims)
