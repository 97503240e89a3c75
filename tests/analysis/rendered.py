"""The sections of an analysis, made from the results in its file."""

import json
from pathlib import Path
from typing import Any

from natattn.analysis.frame import from_json
from natattn.analysis.registry import MODEL_QUESTIONS, RUN_QUESTIONS


def sections(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the section of every result in a folder, as ``Section.to_json`` gives it."""
    results = json.loads((folder / "analysis.json").read_text(encoding="utf-8"))["results"]
    questions = {**MODEL_QUESTIONS, **RUN_QUESTIONS}
    return {
        name: questions[name].section(from_json(questions[name].result, found)).to_json()
        for name, found in results.items()
    }
