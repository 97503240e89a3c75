#!/usr/bin/env bash
# Test the lowest release of every dependency that pyproject.toml allows (torch aside: its oldest CPU build may be missing).
#     bash scripts/lowest.sh [pytest arguments]
set -euo pipefail
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 - > "$work/lowest.txt" <<'PY'
import re
import tomllib

with open("pyproject.toml", "rb") as file:
    for requirement in tomllib.load(file)["project"]["dependencies"]:
        name, lowest = re.match(r"([\w-]+)>=([\w.]+)", requirement).groups()
        if name != "torch":
            print(f"{name}=={lowest}")
PY
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --constraint "$work/lowest.txt" -e ".[test]"
"$work/venv/bin/python" -m pytest -q ${*:-tests/attention tests/config tests/contract tests/data tests/optim}
