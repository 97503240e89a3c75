"""The changes that docs/extending shows: they fit the code as it is, and do what their pages say."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from documentation import DOCS, ROOT, blocks, commands, with_small_budget

PAGES = sorted((DOCS / "extending").glob("*.md"))
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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_change_fits_the_code(page: Path):
    """Or is in it already, where a reader has done what the page says."""
    (change,) = blocks(page, "diff")
    checks = [
        subprocess.run(["git", "apply", "--check", *more, "-"], cwd=ROOT, input=change, capture_output=True, text=True)
        for more in ([], ["--reverse"])
    ]
    assert 0 in [check.returncode for check in checks], checks[0].stderr


@pytest.fixture(scope="module")
def changed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the code with all changes, each saved and applied as its page says."""
    copy = tmp_path_factory.mktemp("changed")
    for name in COPIED:
        source, target = ROOT / name, copy / name
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(source, target)
    subprocess.run(["git", "init", "-q"], cwd=copy, check=True)
    for page in PAGES:
        (change,) = blocks(page, "diff")
        (name,) = re.findall(r"Save the block as `(\S+)`", page.read_text(encoding="utf-8"))
        (copy / name).write_text(change, encoding="utf-8")
        applied = [command for command in commands(page) if command.words[:2] == ["git", "apply"]]
        assert [command.words[2] for command in applied] == [name]
        subprocess.run(applied[0].words, cwd=copy, check=True)
    return copy


@pytest.mark.slow
def test_changed_code_does_what_the_pages_say(changed: Path):
    asked = [
        with_small_budget(command.words[1:])
        for page in PAGES
        for command in commands(page)
        if command.words[0] == "natattn"
    ]
    environment = os.environ | {"PYTHONPATH": str(changed), "NATATTN_CACHE": str(changed / "cache")}
    result = subprocess.run(
        [sys.executable, "-c", RUN_ALL, json.dumps(asked)], cwd=changed, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert str(changed) in result.stdout.splitlines()[0]  # the copy, and not the installed package
    runs = [json.loads(path.read_text(encoding="utf-8")) for path in changed.glob("outputs/**/run.json")]
    labels = " ".join(run["label"] for run in runs) + " ".join(run["data"]["name"] for run in runs)
    assert all(word in labels for word in ("lion", "fixed_pattern", "sums-below-1000"))
    assert all(run["status"] == "finished" for run in runs)
    assert f"python {SCRIPT}" in {command.text for page in PAGES for command in commands(page)}
    subprocess.run([sys.executable, SCRIPT], cwd=changed, env=environment, check=True)
    page = (changed / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert all(f"`{option}`" in page for option in ("lion", "fixed_pattern", "sums"))
    report = (changed / "outputs" / "reproduce" / "mine_smoke" / "report.html").read_text(encoding="utf-8")
    assert "lion" in report


@pytest.mark.slow
def test_the_new_optimizer_passes_the_tests_of_all(changed: Path):
    environment = os.environ | {"PYTHONPATH": str(changed)}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/contract", "-k", "lion"]
    result = subprocess.run(command, cwd=changed, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-2000:]
    assert int(re.findall(r"(\d+) passed", result.stdout)[0]) > 30
