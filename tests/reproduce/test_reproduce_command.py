"""`natattn reproduce` as it is run: every study in little, again, killed in the middle, and with wrong input."""

import csv
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher

from natattn.analysis.kept_runs import RECORD, kept_runs
from natattn.config.compose import compose, groups, plain_values, validated
from natattn.errors import UserError
from natattn.reproduce.claims import CLAIMS
from natattn.reproduce.jobs import Job
from natattn.reproduce.reproduce import Studies, reproduce
from natattn.reproduce.study import ReproduceSettings, read_arguments

# Sums of floats depend on how many threads share them, and processes of joblib have fewer.
ONE_THREAD = os.environ | {"OMP_NUM_THREADS": "1"}
MODULE = "natattn.reproduce.reproduce"
# Columns of time: what differs between two runs of the same.
TIMES = ("seconds", "step time ratio")


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "natattn", "reproduce", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600, env=ONE_THREAD)


def tables(folder: Path) -> dict[str, list[list[str]]]:
    """Every CSV table, without its columns of time."""
    found = {}
    for path in sorted((folder / "tables").glob("*.csv")):
        headings, *rows = csv.reader(path.read_text(encoding="utf-8").splitlines())
        kept = [place for place, heading in enumerate(headings) if not heading.startswith(TIMES)]
        found[path.name] = [[row[place] for place in kept] for row in (headings, *rows)]
    return found


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which all studies have been reproduced at the smoke budget."""
    folder = tmp_path_factory.mktemp("everything")
    done = run(folder, "study=all", "budget=smoke")
    assert done.returncode == 0, done.stderr + done.stdout
    return folder


def test_all_studies_in_little_make_every_kind_of_result(everything: Path):
    made = everything / "outputs" / "reproduce" / "all_smoke"
    names = {path.name for path in made.rglob("*") if path.is_file()}
    ledger = {f"ledger.{suffix}" for suffix in ("csv", "md", "tex", "png")}
    assert ledger | {"report.html", "optimizers_differences.csv", "claims_arms.tex", "published_arms.md"} <= names
    rows = tables(made)["ledger.csv"]
    claims = {row[0] for row in rows[1:]}
    assert claims == set(CLAIMS)
    verdict = rows[0].index("verdict")
    assert not [
        row for row in rows[1:] if row[verdict] == "supported" and row[0][0] != "P"
    ]  # two seeds support nothing
    page = (made / "report.html").read_text(encoding="utf-8")
    assert all(f">{name}" in page or f"{name}:" in page for name in ("R3p", "O1", "K1"))


def test_the_second_time_nothing_is_run_and_the_result_is_the_same(everything: Path):
    made = everything / "outputs" / "reproduce"
    before = {path: path.stat().st_mtime_ns for path in made.glob("runs/*/*")}
    assert before
    first = tables(made / "all_smoke")
    again = run(everything, "study=all", "budget=smoke")
    assert again.returncode == 0, again.stderr
    assert "runs," not in again.stderr  # no progress of any run
    assert before == {path: path.stat().st_mtime_ns for path in made.glob("runs/*/*")}
    assert first == tables(made / "all_smoke")


def test_killed_in_the_middle_and_started_again_the_result_is_the_same(everything: Path, tmp_path: Path):
    runs = tmp_path / "outputs" / "reproduce" / "runs"
    command = [sys.executable, "-m", "natattn", "reproduce", "study=optimizers", "budget=smoke"]
    for wanted in (2, 7):
        with (tmp_path / "log.txt").open("w") as log:
            process = subprocess.Popen(
                command, cwd=tmp_path, stdout=log, stderr=log, start_new_session=True, env=ONE_THREAD
            )
            deadline = time.monotonic() + 120
            while process.poll() is None and time.monotonic() < deadline and len(list(runs.glob("*/arms"))) < wanted:
                time.sleep(0.05)
            assert process.poll() is None, (tmp_path / "log.txt").read_text()
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    done = run(tmp_path, "study=optimizers", "budget=smoke")
    assert done.returncode == 0, done.stderr
    mine = tables(tmp_path / "outputs" / "reproduce" / "optimizers_smoke")
    theirs = tables(everything / "outputs" / "reproduce" / "all_smoke")
    for name in ("optimizers_differences.csv", "optimizers_tuning.csv", "optimizers_arms.csv"):
        strip = [row[:-1] for row in theirs[name]]  # the last column names folders
        assert [row[:-1] for row in mine[name]] == strip


def test_ctrl_c_ends_it_with_130_and_no_traceback(tmp_path: Path):
    command = [sys.executable, "-m", "natattn", "reproduce", "study=published", "budget=smoke"]
    with (tmp_path / "log.txt").open("w") as log:
        process = subprocess.Popen(command, cwd=tmp_path, stdout=log, stderr=log, env=ONE_THREAD)
        deadline = time.monotonic() + 120
        while not list(tmp_path.glob("outputs/reproduce/runs/*/metrics.jsonl")) and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    said = (tmp_path / "log.txt").read_text()
    assert "interrupted" in said
    assert "Traceback" not in said


def test_a_job_that_fails_is_said_and_stops_no_other(everything: Path):
    """In place of one of the finished runs there is a folder that is none, so that only that job is run, and fails."""
    runs = everything / "outputs" / "reproduce" / "runs"
    kept = everything / "kept_aside"
    victim = next(path.parent for path in sorted(runs.glob("*/config.yaml")) if "natural_muon" in path.read_text())
    victim.rename(kept)
    victim.mkdir()
    (victim / "config.yaml").write_text("- in the way")
    try:
        done = run(everything, "study=optimizers", "budget=smoke")
    finally:
        shutil.rmtree(victim)
        kept.rename(victim)
    assert done.returncode == 1
    assert "failed: optimizers: natural_muon" in done.stderr
    assert "Traceback" not in done.stderr
    assert "report.html" in done.stdout


def test_what_a_launcher_that_breaks_off_left_undone_has_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Of the two arms' runs of two seeds the launcher makes the first."""
    instantiate = Plugins.instantiate_launcher

    def breaking(*arguments: Any, **named: Any) -> Launcher:
        launcher = instantiate(*arguments, **named)
        whole = launcher.launch

        def launch(overrides: Sequence[Sequence[str]], initial_job_idx: int) -> None:
            whole(overrides[:1], initial_job_idx)
            raise RuntimeError("a worker was killed\nat some place")

        monkeypatch.setattr(launcher, "launch", launch)
        return launcher

    monkeypatch.setattr(Plugins, "instantiate_launcher", breaking)
    asked = read_arguments(["study=published", "budget=smoke", f"output={tmp_path}", "kept=nowhere"])
    _, (result,) = reproduce(asked)
    assert len(result.failures) == 3
    for line in result.failures:
        assert line.startswith("published: ")
        assert line.endswith(": the launcher broke off: RuntimeError: a worker was killed")


def test_joblib_runs_the_same_study_file(tmp_path: Path, everything: Path):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    done = run(tmp_path, "study=published", "budget=smoke", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    assert done.returncode == 0, done.stderr
    mine = tables(tmp_path / "outputs" / "reproduce" / "published_smoke")["published_differences.csv"]
    theirs = tables(everything / "outputs" / "reproduce" / "all_smoke")["published_differences.csv"]
    assert [row[:-1] for row in mine] == [row[:-1] for row in theirs]


def test_what_is_kept_makes_the_same_tables_without_the_runs(everything: Path, tmp_path: Path):
    scripts = Path(__file__).parents[2] / "scripts"
    (tmp_path / "scripts").mkdir()
    shutil.copyfile(scripts / "keep.py", tmp_path / "scripts" / "keep.py")  # it writes to docs/ next to scripts/
    command = [sys.executable, str(tmp_path / "scripts" / "keep.py"), "study=all", "budget=smoke"]
    done = subprocess.run(command, cwd=everything, capture_output=True, text=True, timeout=300, env=ONE_THREAD)
    assert done.returncode == 0, done.stderr
    results = tmp_path / "docs" / "results"
    made, theirs = tables(results / "studies" / "all_smoke"), tables(everything / "outputs" / "reproduce" / "all_smoke")
    assert made.keys() == theirs.keys()
    without_runs = {name: [row[:-1] for row in rows] for name, rows in made.items()}
    assert without_runs == {name: [row[:-1] for row in rows] for name, rows in theirs.items()}
    links = {link for row in made["ledger.csv"][1:] for link in row[-1].split(";") if link}
    assert links
    packed = {path.name for path in kept_runs(results / RECORD)}
    assert {Path(link).name for link in links} <= packed
    assert all(Path(link).parent.name == RECORD for link in links)
    assert {path.name for path in (results / "studies").iterdir()} == {"all_smoke"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "study: needs a value; valid: all, claims, criticality"),
        (("study=optimizer",), "study=optimizer: no such option; did you mean optimizers"),
        (("study=published", "budget=tiny"), "budget=tiny: valid: 'smoke', 'cpu' or 'gpu'"),
        (("study=published", "bugdet=smoke"), "bugdet: unknown key; did you mean budget?"),
        (("study=optimizers", "only=[nobody]"), "only: nobody is not an arm or corpus of these studies; valid: adamw"),
        (("study=published", "wikitext=nowhere"), "wikitext=nowhere: valid.txt cannot be read"),
        (("study=published", "budget=smoke", "hydra/launcher=nobody"), "hydra/launcher=nobody"),
        (("study=published", "budget=smoke", "hydra.launcher.n_jobs=2"), "hydra.launcher.n_jobs"),
    ],
)
def test_wrong_input_is_one_line(arguments: tuple[str, ...], said: str, tmp_path: Path):
    done = run(tmp_path, *arguments)
    assert done.returncode == 2, done.stderr
    assert said in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr


def test_without_its_text_a_study_shows_what_is_published_and_names_what_is_missing(tmp_path: Path):
    kept = Path(__file__).parents[2] / "docs" / "results"
    done = run(tmp_path, "study=optimizers", "train=false", f"kept={kept}")
    assert done.returncode == 0, done.stderr
    rows = tables(tmp_path / "outputs" / "reproduce" / "optimizers_cpu")["optimizers_differences.csv"]
    (found,) = [r for r in rows if r[:2] == ["wikitext2", "natural_muon − muon: final loss"]]
    assert float(found[rows[0].index("mean")]) == pytest.approx(-0.0658, abs=2e-4)  # docs/results/screening.md
    assert not (tmp_path / "outputs" / "reproduce" / "runs").exists()


def test_studies_are_named_once_and_all_of_them_is_all():
    assert [each.study.name for each in read_arguments(["study=published,theorems,published"]).settings] == [
        "published", "theorems",
    ]  # fmt: skip
    everything = read_arguments(["study=theorems,all", "budget=smoke", "hydra/launcher=joblib"])
    assert [each.study.name for each in everything.settings] == list(groups()["study"])
    assert (everything.name, everything.launcher) == ("all_smoke", ("hydra/launcher=joblib",))
    assert read_arguments(["study=theorems", "only=trained"]).settings[0].only == ("trained",)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"comparisons": [{"arm": "a", "baseline": "b", "claim": "R33"}]},
            "claim R33: not in the ledger; did you mean R3",
        ),
        ({"analyses": {"x": {"arms": ["a"], "of": "run", "judges": ["width"], "where": ""}}}, "did you mean widths"),
    ],
)
def test_a_study_that_names_what_is_not_there_is_one_line(changes, said: str, monkeypatch: pytest.MonkeyPatch):
    made = {
        "name": "made", "title": "made", "seeds": [1], "corpora": {"text": {}}, "arms": {"a": {}, "b": {}},
        "budgets": {"cpu": {}},
    }  # fmt: skip
    keys = {
        "budget": "cpu",
        "runs": [],
        "kept": "",
        "wikitext": None,
        "train": True,
        "seeds_together": False,
        "only": [],
        "output": "o",
    }
    monkeypatch.setattr("natattn.reproduce.study.plain_values", lambda _: {"study": made | changes, **keys})
    with pytest.raises(UserError, match=said):
        read_arguments(["study=published"])
    values = {"study": made, **keys, "budget": "smoke"}
    monkeypatch.setattr("natattn.reproduce.study.plain_values", lambda _: values)
    with pytest.raises(UserError, match="study made has cpu"):
        read_arguments(["study=published"])


@pytest.mark.parametrize("study", groups()["study"])
@pytest.mark.parametrize("budget", ["smoke", "cpu", "gpu"])
def test_every_study_file_composes_at_every_budget(study: str, budget: str):
    composed = compose([f"study={study}", f"budget={budget}"], "reproduce")
    settings = validated(plain_values(composed), ReproduceSettings)
    at = settings.study.at(settings.budget)
    assert at.name == study
    assert {c.claim for c in at.comparisons} - {None} <= set(CLAIMS)
    assert all(CLAIMS[c.claim].study == study for c in at.comparisons if c.claim is not None)


def _studies(folder: Path, **named: Any) -> Studies:
    settings = SimpleNamespace(kept=str(folder / "kept"), seeds_together=False)
    return Studies([settings], folder, named.get("done"), [])  # type: ignore[list-item, arg-type]


def test_a_run_that_ends_without_what_is_needed_is_not_made_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    launched: list[Any] = []
    monkeypatch.setattr(f"{MODULE}.launch", lambda todo, *rest, **named: launched.append(todo) or ["it failed"])
    monkeypatch.setattr(Studies, "_missing", lambda _: {"made: adam": Job("there", ()), "made: muon": Job("not", ())})
    found = SimpleNamespace(add=lambda folder: None, find=lambda key: "a run" if key == "there" else None)
    studies = _studies(tmp_path, done=found)
    studies.train(())
    assert [sorted(todo) for todo in launched] == [["made: adam", "made: muon"]]
    without = f"made: adam: {tmp_path / 'runs' / 'there'} has ended without what the study needs of it"
    assert studies.failures == ["it failed", without]


def test_an_analysis_that_breaks_stops_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def analysis(name: str, trial: str = "done") -> Any:
        return SimpleNamespace(name=name, trials=[trial], settings=SimpleNamespace(judges=()), kind=(name,))

    def make(wanted: Any, trials: Any, folder: Path) -> Path:
        if wanted.name == "broken":
            raise ZeroDivisionError("by zero")
        if wanted.name == "refused":
            raise UserError("no such section")
        return folder / wanted.name

    wanted = [analysis("broken"), analysis("refused"), analysis("early", "not done"), analysis("fine")]
    monkeypatch.setattr(f"{MODULE}.wanted_analyses", lambda trials, plan: wanted)
    monkeypatch.setattr(f"{MODULE}.kept_analysis", lambda wanted, folders: None)
    monkeypatch.setattr(f"{MODULE}.make_analysis", make)
    monkeypatch.setattr(f"{MODULE}.pictures_of", lambda wanted, folder: [folder.name])
    trials: Any = SimpleNamespace(study=SimpleNamespace(name="made"), run=lambda trial: {"done": 1}.get(trial))
    studies = _studies(tmp_path)
    read = studies._analyses(trials, None, True)  # type: ignore[arg-type]
    assert read.pictures == ["fine"]
    assert read.missing == ["made: analysis early of 1 runs is missing"]
    assert studies.failures == [
        "made: analysis broken of 1 runs: ZeroDivisionError: by zero",
        "made: analysis refused of 1 runs: no such section",
    ]
    said = capsys.readouterr().err
    assert all(f"natattn: failed: {failure}" in said for failure in studies.failures)
    assert said.count("Traceback") == 1  # a mistake of the user's needs none
    assert studies._analyses(trials, None, False).missing == [  # type: ignore[arg-type]
        f"made: analysis {each.name} of 1 runs is missing" for each in wanted
    ]


def test_an_output_that_is_no_folder_is_one_line(tmp_path: Path):
    (tmp_path / "file").write_text("in the way")
    asked = read_arguments(["study=published", "budget=smoke", f"output={tmp_path}/file/output", "kept=nowhere"])
    with pytest.raises(UserError, match="file/output: cannot be used: Not a directory"):
        reproduce(asked)
