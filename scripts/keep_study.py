"""Publish what studies found: their runs, analyses, tables and figures, as small files in docs/results.

    python scripts/keep_study.py study=all budget=cpu [key=value ...]

Takes the arguments of `natattn reproduce`. Runs and analyses that the studies use are copied to docs/results/runs and
docs/results/analyses, and the tables are then made again from these copies alone, into docs/results/studies; so that
anyone can make them again from a checkout. Nothing is trained.
"""

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from keep_runs import METRICS, keep

from natattn.analysis.analyze import FIGURES, RESULTS
from natattn.analysis.runs import RunSummary
from natattn.errors import UserError
from natattn.reproduce.analyses import kept_analysis, wanted_analyses
from natattn.reproduce.arguments import read_arguments
from natattn.reproduce.done import DoneRuns, key_of
from natattn.reproduce.reproduce import ANALYSES, RUNS, Studies, reproduce

DOCS = Path(__file__).parent.parent / "docs"
RESULTS_FOLDER = DOCS / "results"
# What is made again in seconds, or is as large as all the rest.
NOT_KEPT = ("composed.json", "texts", "report.html")


def main() -> int:
    """Keep the studies that are named."""
    if not sys.argv[1:]:
        print(__doc__)
        return 2
    try:
        keep_studies(sys.argv[1:])
        made = publish(sys.argv[1:])
    except UserError as error:
        print(f"keep_study: {error}", file=sys.stderr)
        return 2
    print(f"kept: {made}")
    return 0


def keep_studies(arguments: list[str]) -> None:
    """Copy runs and analyses that are not in docs/results yet."""
    studies = Studies.of(read_arguments([*arguments, "train=false", f"kept={RESULTS_FOLDER}"]).settings)
    for trials in studies.trials:
        plan = trials.plan()
        for trial in plan.trials:
            run = trials.run(trial)
            if run is not None and not is_kept(run, trials.study.metrics):
                keep(run.folder, (*METRICS, *trials.study.metrics))
        shown = set()
        for wanted in wanted_analyses(trials, plan):
            folder = kept_analysis(wanted, studies.analysis_folders)
            target = RESULTS_FOLDER / ANALYSES / wanted.key
            if folder is not None and folder.resolve() != target.resolve():
                keep_analysis(folder, target, pictures=wanted.kind not in shown)
            shown.add(wanted.kind)


def is_kept(run: RunSummary, metrics: Sequence[str]) -> bool:
    """Whether the run is in docs/results already, with all that is wanted of it."""
    if RESULTS_FOLDER.resolve() in run.folder.resolve().parents:
        return True
    folder = RESULTS_FOLDER / RUNS / run.config_hash[:16]
    return (key := key_of(folder)) is not None and DoneRuns([folder]).find(key, metrics) is not None


def keep_analysis(folder: Path, target: Path, *, pictures: bool) -> None:
    """Copy the numbers of one analysis, and its pictures where they are shown: of repetitions only the first's are."""
    target.mkdir(parents=True, exist_ok=True)
    text = (folder / RESULTS).read_text(encoding="utf-8")
    (target / RESULTS).write_text(text.replace(f"{DOCS.resolve().parent}/", ""), encoding="utf-8")
    if pictures:
        shutil.copytree(folder / FIGURES, target / FIGURES, dirs_exist_ok=True)


def publish(arguments: list[str]) -> Path:
    """Make tables and figures from what is kept alone."""
    output = RESULTS_FOLDER / "studies"
    asked = read_arguments([*arguments, "train=false", "runs=[]", f"kept={RESULTS_FOLDER}", f"output={output}"])
    page, _ = reproduce(asked)
    for name in NOT_KEPT:
        for path in (output / name, page.parent / name):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
    return page.parent


if __name__ == "__main__":
    sys.exit(main())
