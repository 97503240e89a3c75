"""Keep what an analysis found beside the pages that speak of it: numbers, pictures, and a page that GitHub shows.

    python scripts/keep_analysis.py outputs/analysis_NAME NAME

Copies analysis.json to docs/results/analysis/NAME.json and the pictures to docs/images/NAME_*.png, and writes
docs/results/analysis/NAME.md with all findings, pictures and tables; of long tables the first rows.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

from natattn.analysis.analyze import FIGURES, RESULTS
from natattn.analysis.frame import from_json
from natattn.analysis.registry import MODEL_QUESTIONS, RUN_QUESTIONS
from natattn.errors import UserError
from natattn.report.section import shown

DOCS = Path(__file__).parent.parent / "docs"
KEPT, IMAGES = DOCS / "results" / "analysis", DOCS / "images"
MOST_ROWS = 24
LONGEST_CELL = 120  # characters: a pasted tensor may have thousands


def main() -> int:
    """Keep one analysis."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path)
    parser.add_argument("name")
    options = parser.parse_args()
    try:
        keep(options.folder, options.name)
    except UserError as error:
        print(f"keep_analysis: {error}", file=sys.stderr)
        return 2
    return 0


def keep(folder: Path, name: str) -> None:
    """Copy and write. Raises: UserError where there is no analysis, or it names a machine's folders."""
    try:
        text = (folder / RESULTS).read_text(encoding="utf-8")
        found = json.loads(text)
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: no analysis: {error}") from error
    for value in found["subject"].values():
        if str(value).startswith("/"):
            raise UserError(f"{folder}: {value}: names a folder of this machine; analyse with a relative path")
    KEPT.mkdir(parents=True, exist_ok=True)
    (KEPT / f"{name}.json").write_text(text, encoding="utf-8")
    for old in IMAGES.glob(f"{name}_*.png"):
        old.unlink()
    for pictures in found["pictures"].values():
        for picture in pictures:
            png = f"{picture['name']}.png"
            shutil.copyfile(folder / FIGURES / png, IMAGES / f"{name}_{png}")
    (KEPT / f"{name}.md").write_text(page(found, name), encoding="utf-8")


def page(found: dict[str, Any], name: str) -> str:
    """The analysis as Markdown."""
    card = "\n".join(f"- {key}: {value}" for key, value in found["subject"].items())
    parts = [f"# Analysis: {name.replace('_', ' ')}", f"{card}\n\nAll numbers: [{name}.json]({name}.json)."]
    questions = {**MODEL_QUESTIONS, **RUN_QUESTIONS}
    for question, result in found["results"].items():
        section = questions[question].section(from_json(questions[question].result, result)).to_json()
        parts.append(f"## {section['title']}")
        parts.append("\n".join(f"- {finding}" for finding in section["findings"]))
        for picture in section["pictures"]:
            image = f"../../images/{name}_{picture['name']}.png"
            parts.append(f"![{picture['name']}]({image})\n\n{picture['caption']}")
        parts.extend(table(found_table) for found_table in section["tables"] if found_table["rows"])
    return "\n\n".join(parts) + "\n"


def table(found: dict[str, Any]) -> str:
    """As many rows as can be read."""
    lines = [found["headings"], ["---"] * len(found["headings"]), *found["rows"][:MOST_ROWS]]
    text = "\n".join("| " + " | ".join(map(cell, line)) + " |" for line in lines)
    more = len(found["rows"]) - MOST_ROWS
    return text + (f"\n\n{more} more rows in the JSON file." if more > 0 else "")


def cell(value: Any) -> str:
    """One line, without what ends a cell."""
    text = " ".join(shown(value).split()).replace("|", "\\|")
    return text if len(text) <= LONGEST_CELL else text[: LONGEST_CELL - 1] + "…"


if __name__ == "__main__":
    sys.exit(main())
