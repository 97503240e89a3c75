"""The changes in docs/extending.md fit the code as it is, and do what the page says."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from documentation import DOCS, ROOT, blocks, commands, with_small_budget

PAGE = DOCS / "extending.md"
NAMES = re.findall(r"Save the block as `(\S+)`", PAGE.read_text(encoding="utf-8"))
CHANGES = dict(zip(NAMES, blocks(PAGE, "diff"), strict=True))
SCRIPT = "scripts/write_configuration.py"
COPIED = ("natattn", "conf", "tests/contract", "pyproject.toml", SCRIPT, "docs/configuration.md")
RUN_ALL = """
import json, sys
import natattn
from natattn.cli.main import main
print(natattn.__file__)
for arguments in json.loads(sys.argv[1]):
    code = main(arguments)
    assert code == 0, (code, arguments)
"""


@pytest.mark.parametrize("name", NAMES)
def test_every_change_fits_the_code(name: str):
    """Also passes if a reader has applied the change already."""
    checks = [
        subprocess.run(
            ["git", "apply", "--check", *more, "-"], cwd=ROOT, input=CHANGES[name], capture_output=True, text=True
        )
        for more in ([], ["--reverse"])
    ]
    assert 0 in [check.returncode for check in checks], checks[0].stderr


@pytest.fixture(scope="module")
def changed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy the code and apply all changes as the page says."""
    copy = tmp_path_factory.mktemp("changed")
    for name in COPIED:
        source, target = ROOT / name, copy / name
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(source, target)
    subprocess.run(["git", "init", "-q"], cwd=copy, check=True)
    assert [command.words[2] for command in commands(PAGE) if command.words[:2] == ["git", "apply"]] == NAMES
    for name, change in CHANGES.items():
        (copy / name).write_text(change, encoding="utf-8")
        subprocess.run(["git", "apply", name], cwd=copy, check=True)
    return copy


@pytest.mark.slow
def test_changed_code_does_what_the_page_says(changed: Path):
    requested = [with_small_budget(each.words[1:]) for each in commands(PAGE) if each.words[0] == "natattn"]
    environment = os.environ | {"PYTHONPATH": str(changed), "NATATTN_CACHE": str(changed / "cache")}
    command = [sys.executable, "-c", RUN_ALL, json.dumps(requested)]
    result = subprocess.run(command, cwd=changed, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
    assert str(changed) in result.stdout.splitlines()[0]  # the copy rather than the installed package
    runs = [json.loads(path.read_text(encoding="utf-8")) for path in changed.glob("outputs/**/run.json")]
    labels = " ".join(run["label"] for run in runs) + " ".join(run["data"]["name"] for run in runs)
    assert all(word in labels for word in ("lion", "fixed_pattern", "sums-below-1000"))
    assert all(run["status"] == "finished" for run in runs)
    subprocess.run([sys.executable, SCRIPT], cwd=changed, env=environment, check=True)
    page = (changed / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert all(f"`{option}`" in page for option in ("lion", "fixed_pattern", "sums"))
    report = (changed / "outputs" / "reproduce" / "mine_smoke" / "report.html").read_text(encoding="utf-8")
    assert "lion" in report


@pytest.mark.slow
def test_the_new_optimizer_passes_the_tests_of_all(changed: Path):
    environment = os.environ | {"PYTHONPATH": str(changed)}
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "tests/contract", "-k", "lion"]
    result = subprocess.run(command, cwd=changed, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-2000:]
    assert int(re.findall(r"(\d+) passed", result.stdout)[0]) > 30
