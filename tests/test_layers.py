"""The import contract of the house."""

import subprocess
import sys
from pathlib import Path


def test_imports_point_down_the_layers():
    root = Path(__file__).parents[1]
    code = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
    result = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "KEPT" in result.stdout
