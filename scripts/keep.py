"""Publish what studies found in docs/results: their runs, packed, their analyses, and the tables made from these alone.

    python scripts/keep.py study=all budget=cpu [key=value ...]

Takes the arguments of `natattn reproduce`. Nothing is trained.
"""

import shutil
import sys
from pathlib import Path

from natattn.analysis.analyze import FIGURES, RESULTS
from natattn.analysis.kept_runs import KEPT_METRICS, RECORD, keep_runs
from natattn.errors import UserError
from natattn.reproduce.analyses import kept_analysis, wanted_analyses
from natattn.reproduce.jobs import DoneRuns
from natattn.reproduce.reproduce import ANALYSES, Studies, reproduce
from natattn.reproduce.study import read_arguments

ROOT = Path(__file__).parent.parent
KEPT = ROOT / "docs" / "results"
NOT_KEPT = ("texts", "report.html")  # made again in seconds, or as large as all the rest


def keep(arguments: list[str]) -> None:
    """Copy the runs and analyses of the studies that are not in docs/results yet."""
    studies = Studies.of(read_arguments([*arguments, "train=false", f"kept={KEPT}"]).settings)
    for trials in studies.trials:
        plan = trials.plan()
        kept = DoneRuns([KEPT / RECORD])
        missing = [trial for trial in plan.trials if kept.find(trials.key(trial), trials.study.metrics) is None]
        runs = {run.folder for trial in missing if (run := trials.run(trial)) is not None}
        keep_runs(sorted(runs), KEPT, (*KEPT_METRICS, *trials.study.metrics))
        with_pictures = set()  # of repetitions only the first is shown
        for wanted in wanted_analyses(trials, plan):
            folder, target = kept_analysis(wanted, studies.analysis_folders), KEPT / ANALYSES / wanted.key
            if folder is not None and folder.resolve() != target.resolve():
                target.mkdir(parents=True, exist_ok=True)
                text = (folder / RESULTS).read_text(encoding="utf-8")
                (target / RESULTS).write_text(text.replace(f"{ROOT.resolve()}/", ""), encoding="utf-8")
                if wanted.kind not in with_pictures:
                    shutil.copytree(folder / FIGURES, target / FIGURES, dirs_exist_ok=True)
            with_pictures.add(wanted.kind)


def publish(arguments: list[str]) -> Path:
    """Write tables and figures from what is kept alone."""
    output = KEPT / "studies"
    asked = read_arguments([*arguments, "train=false", "runs=[]", f"kept={KEPT}", f"output={output}"])
    page, _ = reproduce(asked)
    for path in (parent / name for name in NOT_KEPT for parent in (output, page.parent)):
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    return page.parent


if __name__ == "__main__":
    if not sys.argv[1:]:
        sys.exit(__doc__)
    try:
        keep(sys.argv[1:])
        print(f"kept: {publish(sys.argv[1:])}")
    except UserError as error:
        print(f"keep: {error}", file=sys.stderr)
        sys.exit(2)
