"""The pages as a site: links lead somewhere, the generated page is new, the site is whole offline; and the notebook."""

import json
import re
import runpy
import subprocess
import sys
from pathlib import Path

import matplotlib
import pytest
from documentation import DOCS, ROOT, name_of, pages

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_CODE = re.compile(r"^```.*?^```$|`[^`\n]+`", re.MULTILINE | re.DOTALL)
# What a browser fetches to show a page: not what a reader may click on.
_FETCHED = re.compile(
    r"""<(?:script|img|iframe|source|video|audio)\b[^>]*\bsrc=["']([^"']+)|<link\b[^>]*\bhref=["']([^"']+)"""
)
_FETCHED_BY_STYLE = re.compile(r"""(?:url\(|@import)\s*["']?([^"')\s]+)""")


@pytest.mark.parametrize("page", pages(), ids=name_of)
def test_links_lead_to_files_and_headings(page: Path):
    for link in _LINK.findall(_CODE.sub("", page.read_text(encoding="utf-8"))):
        if link.startswith(("http:", "https:", "mailto:")):
            continue
        path, _, heading = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        if heading:
            assert heading in headings(target), link


def headings(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub and the site make them."""
    text = _CODE.sub(lambda code: code.group().strip("`") if "\n" not in code.group() else "", page.read_text("utf-8"))
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_the_page_of_the_configuration_is_that_of_the_files():
    script = runpy.run_path(str(ROOT / "scripts" / "write_configuration.py"))
    written = (DOCS / "configuration.md").read_text(encoding="utf-8")
    assert script["page"]() == written, "python scripts/write_configuration.py"


@pytest.mark.slow
def test_the_site_is_built_strictly_and_fetches_nothing(tmp_path: Path):
    pytest.importorskip("furo", reason='python -m pip install -e ".[docs]"')
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", str(DOCS), str(tmp_path / "site")]
    result = subprocess.run([*command, "-d", str(tmp_path / "doctrees")], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    built = tmp_path / "site"
    shown = {page.relative_to(DOCS).with_suffix(".html") for page in pages() if page.is_relative_to(DOCS)}
    assert [page for page in shown if not (built / page).is_file()] == []
    for page in [*built.rglob("*.html"), *built.rglob("*.css")]:
        text = page.read_text(encoding="utf-8")
        names = (
            [a or b for a, b in _FETCHED.findall(text)] if page.suffix == ".html" else _FETCHED_BY_STYLE.findall(text)
        )
        for name in names:
            assert not name.startswith(("http:", "https:", "//")), (page.name, name)
            if not name.startswith(("data:", "#")):
                assert (page.parent / name.partition("?")[0].partition("#")[0]).exists(), (page.name, name)
    for script in built.rglob("*.js"):
        text = script.read_text(encoding="utf-8")
        assert not re.search(r"""(import|importScripts|fetch|src\s*=)\s*\(?\s*["'](https?:)?//""", text), script.name
    formula = (built / "attention.html").read_text(encoding="utf-8")
    assert formula.count("<math") > 10
    assert "MathJax" not in formula


def test_notebooks_are_small():
    assert NOTEBOOKS
    for path in NOTEBOOKS:
        content = json.loads(path.read_text(encoding="utf-8"))
        assert content["nbformat"] == 4
        assert path.stat().st_size < 100_000
        outputs = [output for cell in content["cells"] for output in cell.get("outputs", ())]
        assert not [output for output in outputs if output["output_type"] == "error"]


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_its_models_learn(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    matplotlib.use("agg")
    space: dict[str, object] = {"__name__": "__main__"}
    for number, cell in enumerate(json.loads(path.read_text(encoding="utf-8"))["cells"]):
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), f"{path.name}, cell {number}", "exec"), space)
    losses = space["losses"]
    assert isinstance(losses, dict)
    assert len(losses) == 3
    assert all(curve[-1][1] < 0.3 * curve[0][1] for curve in losses.values())
