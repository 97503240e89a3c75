"""The example trains two arms from the same weights on the same batches, using public names only."""

import ast
import json
import subprocess
import sys
from pathlib import Path

EXAMPLE = Path(__file__).parents[1] / "examples" / "side_by_side.py"


def test_side_by_side_prints_the_losses_of_both_arms(tmp_path):
    command = [sys.executable, str(EXAMPLE), "--steps", "20", "--evaluate-every", "10", "--width", "32"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    first, *_, last = [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]
    standard, natural = "standard + AdamW", "natural + NaturalMuon"
    assert first["step"] == 0
    assert first[standard] == first[natural]
    assert last["step"] == 20
    assert max(last[standard], last[natural]) < first[standard] - 0.5
    assert last[standard] != last[natural]
    assert not list(tmp_path.iterdir())


def test_side_by_side_uses_public_names():
    imports = [node for node in ast.walk(ast.parse(EXAMPLE.read_text())) if isinstance(node, ast.ImportFrom)]
    assert {node.module for node in imports if node.module and node.module.startswith("natattn")} == {"natattn"}
