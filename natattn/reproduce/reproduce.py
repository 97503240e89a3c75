"""`natattn reproduce`: train what is missing, analyse, compare, judge, and write tables, figures and a page.

Everything is made from finished runs, so that it can be interrupted and restarted at any time: finished work is reused.
"""

import traceback
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from natattn.analysis.kept_runs import RECORD
from natattn.analysis.verdicts import AnalysisResult
from natattn.errors import UserError
from natattn.report.section import Picture
from natattn.report.table import Finding, StudyTable
from natattn.report.writers import write_tables
from natattn.reproduce.analyses import (
    analysed,
    kept_analysis,
    make_analysis,
    pictures_of,
    reads_models,
    wanted_analyses,
)
from natattn.reproduce.claims import CLAIMS
from natattn.reproduce.figures import differences_figure, ledger_figure, study_profile_figure
from natattn.reproduce.jobs import DoneRuns, Job, JobMaker
from natattn.reproduce.judges import JUDGES
from natattn.reproduce.ledger import claims_of, judge, ledger_table, summary_table
from natattn.reproduce.plan import Plan, Trials
from natattn.reproduce.report import write_report
from natattn.reproduce.results import StudyResult
from natattn.reproduce.runner import launch
from natattn.reproduce.study import ReproduceSettings, Request
from natattn.reproduce.study_tables import arms_table, differences_table, findings, tuning_table
from natattn.statistics.paired import LEAST_FOR_A_CLAIM
from natattn.training.run_folder import announce

RUNS, ANALYSES = "runs", "analyses"  # folders of the output; published analyses are in a folder of the same name


def reproduce(request: Request) -> tuple[Path, list[StudyResult]]:
    """Do what is missing of the studies and write their results to a folder. Return the page and the results.

    Raises: UserError for what the user can fix.
    """
    settings = request.settings
    try:
        Path(settings[0].output).mkdir(parents=True, exist_ok=True)
        studies = Studies.of(settings)
        if settings[0].train:
            studies.train(request.launcher)
        results = [prefixed(result) for result in studies.results(analyse=settings[0].train)]
        folder = studies.folder / request.name
        claims = claims_of(results, CLAIMS)
        tables = [ledger_table(results, claims), summary_table(results, claims)]
        write_tables(folder / "tables", [*tables, *(table for result in results for table in result.tables)])
        pictures = [picture for result in results for picture in result.pictures]
        write_figures(folder / "figures", [*pictures, ledger_figure(results, claims)])
        page = folder / "report.html"
        write_report(page, settings[0].study.title if len(settings) == 1 else "The claims", results, claims)
        return page, results
    except OSError as error:
        raise UserError(f"{error.filename or settings[0].output}: cannot be used: {error.strerror}") from error


def prefixed(result: StudyResult) -> StudyResult:
    """Return the result with the study's name before its file names, so that files of several studies differ."""

    def named(name: str) -> str:
        return name if name.startswith(result.name) else f"{result.name}_{name}"

    return replace(
        result,
        pictures=tuple(replace(picture, name=named(picture.name)) for picture in result.pictures),
        tables=tuple(replace(table, name=named(table.name)) for table in result.tables),
    )


def write_figures(folder: Path, pictures: Iterable[Picture]) -> None:
    """Write every picture as PNG, with its numbers as CSV. Raises: OSError if the folder cannot be written to."""
    folder.mkdir(parents=True, exist_ok=True)
    for picture in pictures:
        picture.write(folder)


@dataclass
class Studies:
    """Studies that are reproduced together, because they share runs.

    Attributes:
        folder: for runs, analyses, texts and results.
        trials: of each study.
        only_arms, only_corpora: those to train in this process; empty for all.
        failures: one line for each job and analysis that failed in this process.
    """

    settings: Sequence[ReproduceSettings]
    folder: Path
    done: DoneRuns
    trials: list[Trials]
    only_arms: frozenset[str] = frozenset()
    only_corpora: frozenset[str] = frozenset()
    failures: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, settings: Sequence[ReproduceSettings]) -> "Studies":
        """Return the studies at their budgets, with the finished runs. Raises: UserError for an invalid override."""
        first = settings[0]
        folder = Path(first.output)
        done = DoneRuns([folder / RUNS, *first.runs, Path(first.kept) / RECORD], named=first.runs)
        maker = JobMaker(folder, first.wikitext)
        trials = [Trials(of_one.study.at(of_one.budget), maker, done) for of_one in settings]
        arms = {name for of_one in trials for name in of_one.study.arms}
        corpora = {name for of_one in trials for name in of_one.study.corpora}
        if unknown := [name for name in first.only if name not in arms | corpora]:
            valid = ", ".join(sorted(arms | corpora))
            raise UserError(f"only: {unknown[0]} is not an arm or corpus of these studies; valid: {valid}")
        only = frozenset(first.only)
        studies = cls(settings, folder, done, trials, only & arms, only & corpora)
        for of_one in trials:
            # Train with weights what an analysis that has not been made needs them of.
            for wanted in wanted_analyses(of_one, of_one.plan()):
                if reads_models(wanted) and kept_analysis(wanted, studies.analysis_folders) is None:
                    of_one.with_model |= {trial.arm for trial in wanted.trials}
            for trial in of_one.plan().trials:
                of_one.job(trial)  # an invalid override is an error before anything is trained
        return studies

    @property
    def analysis_folders(self) -> list[Path]:
        """Return the folders that are searched for finished analyses."""
        return [self.folder / ANALYSES, Path(self.settings[0].kept) / ANALYSES]

    def train(self, launcher: Sequence[str]) -> None:
        """Run what is missing, in rounds, because the results of tuning decide what follows."""
        tried: set[str] = set()
        while todo := {label: job for label, job in self._missing().items() if job.key not in tried}:
            tried |= {job.key for job in todo.values()}
            self.failures += launch(todo, self.folder / RUNS, launcher, seeds_together=self.settings[0].seeds_together)
            for job in todo.values():
                self.done.add(self.folder / RUNS / job.key)
        for label, job in self._missing().items():
            if job.key in tried and self.done.find(job.key) is not None:
                self._fail(f"{label}: {self.folder / RUNS / job.key} has ended without what the study needs of it")

    def _missing(self) -> dict[str, Job]:
        """Return jobs that can be run and are not finished, each once, by their labels."""
        jobs: dict[str, tuple[str, Job]] = {}
        for trials in self.trials:
            for trial in trials.plan().trials:
                if trials.is_among(trial, self.only_arms, self.only_corpora):
                    job = trials.job(trial)
                    if isinstance(job, Job) and trials.run(trial) is None:
                        jobs.setdefault(job.key, (trials.label(trial), job))
        return dict(jobs.values())

    def _fail(self, line: str) -> None:
        self.failures.append(line)
        announce(f"natattn: failed: {line}")

    def results(self, *, analyse: bool) -> list[StudyResult]:
        """Return the result of each study, given what is finished now.

        Args:
            analyse: make analyses that do not exist; otherwise they are listed as missing.
        """
        return [
            self._result(of_one, trials, analyse) for of_one, trials in zip(self.settings, self.trials, strict=True)
        ]

    def _result(self, settings: ReproduceSettings, trials: Trials, analyse: bool) -> StudyResult:
        plan, study = trials.plan(), trials.study
        leaky = {
            (corpus, name)
            for corpus in study.corpora
            for name in trials.arms
            if any(arm.leaky for _, arm in trials.finals(plan, corpus, name))
        }
        judged = judge(study, lambda *names: trials.measure(plan, *names), leaky)
        tables = [arms_table(trials, plan), differences_table(trials, plan, judged)] if judged else []
        tables += [] if (tuning := tuning_table(trials, plan)) is None else [tuning]
        drawn = (differences_figure(trials, plan, judged), study_profile_figure(trials, plan))
        analyses = self._analyses(trials, plan, analyse)
        return StudyResult(
            study.name,
            settings.budget,
            study.title,
            _facts(trials, plan),
            (*findings(trials, plan, judged), *analyses.findings),
            (*tables, *analyses.tables),
            (*(picture for picture in drawn if picture is not None), *analyses.pictures),
            (*_missing_runs(trials, plan), *analyses.missing),
            tuple(failure for failure in self.failures if failure.startswith(f"{study.name}:")),
        )

    def _analyses(self, trials: Trials, plan: Plan, analyse: bool) -> "_Analyses":
        """Return the results of the study's analyses; make those that do not exist."""
        made, inputs, shown = _Analyses(), dict[str, list[AnalysisResult]](), set[tuple[str, ...]]()
        for wanted in wanted_analyses(trials, plan):
            folder = kept_analysis(wanted, self.analysis_folders)
            if folder is None:
                label = f"{trials.study.name}: analysis {wanted.name} of {len(wanted.trials)} runs"
                if not analyse or any(trials.run(trial) is None for trial in wanted.trials):
                    made.missing.append(f"{label} is missing")
                    continue
                try:
                    folder = make_analysis(wanted, trials, self.folder / ANALYSES)
                except UserError as error:
                    self._fail(f"{label}: {error}")
                    continue
                except Exception as error:  # a broken analysis does not stop the others
                    traceback.print_exc()
                    self._fail(f"{label}: {type(error).__name__}: {error}")
                    continue
            for name in wanted.settings.judges:
                inputs.setdefault(name, []).append(analysed(wanted, folder, trials))
            if wanted.kind not in shown:
                shown.add(wanted.kind)
                made.pictures += pictures_of(wanted, folder)
        for name, analyses in inputs.items():
            of_judge, tables = JUDGES[name](trials.study.name, analyses)
            made.findings += of_judge
            made.tables += tables
        return made


@dataclass
class _Analyses:
    findings: list[Finding] = field(default_factory=list)
    tables: list[StudyTable] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


def _missing_runs(trials: Trials, plan: Plan) -> list[str]:
    """Return a line for each arm and corpus with missing runs, with their number and the reason."""
    lines: dict[str, int] = {}
    for trial in plan.trials:
        if trials.run(trial) is None:
            why = "" if isinstance(trials.job(trial), Job) else "; its text was not given (wikitext=FOLDER)"
            line = f"{trials.study.name}: runs of {trial.arm} on {trial.corpus} are missing{why}"
            lines[line] = lines.get(line, 0) + 1
    return [f"{line}: {count}" for line, count in lines.items()]


def _facts(trials: Trials, plan: Plan) -> dict[str, str]:
    study = trials.study
    runs = {run.folder: run for trial in plan.trials if (run := trials.run(trial)) is not None}
    data = {f"{run.data.name} ({run.data.fingerprint[:12]})" for run in runs.values() if run.data}
    facts = {
        "runs": f"{len(runs)}, of {len({trials.key(trial) for trial in plan.trials})} that are wanted by now",
        "arms": f"{len(trials.arms)}, placebos included",
        "seeds": ", ".join(map(str, study.seeds)),
        "data": "; ".join(sorted(data)),
        "settings": " ".join((*study.base, *study.of_budget)),
        "device": ", ".join(sorted({run.device for run in runs.values()})),
    }
    if study.comparisons and len(study.seeds) < LEAST_FOR_A_CLAIM:
        facts["no verdicts"] = f"a difference needs at least {LEAST_FOR_A_CLAIM} seeds: all here are inconclusive"
    return {name: value for name, value in facts.items() if value}
