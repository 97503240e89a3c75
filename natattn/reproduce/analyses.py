"""A study's analyses: `natattn analyze` over its runs, made once and read by the judges."""

import csv
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from natattn.analysis.analyze import FIGURES, RESULTS, analyze
from natattn.analysis.frame import Question, from_json
from natattn.analysis.registry import MODEL_QUESTIONS, RUN_QUESTIONS
from natattn.analysis.settings import AnalyzeSettings, SectionName
from natattn.analysis.verdicts import AnalysisResult
from natattn.config.compose import compose, plain_values, quote_paths, validated
from natattn.errors import UserError
from natattn.report.section import Picture, Section, table
from natattn.reproduce.jobs import KEY_LENGTH
from natattn.reproduce.plan import Plan, Trials, final_trial
from natattn.reproduce.study import AnalysisSettings, StudySettings, Trial
from natattn.storage.documents import read_json

_YOUNGER = frozenset({"tower"})


@dataclass(frozen=True)
class AnalysisSpec:
    """One call of `natattn analyze`: which analysis of the study, on which trials.

    Attributes:
        key: hash of what is asked and of the runs that it is asked of.
    """

    name: str
    settings: AnalysisSettings
    options: AnalyzeSettings
    trials: tuple[Trial, ...]
    key: str

    @property
    def kind(self) -> tuple[str, ...]:
        """Return what repetitions over seeds share; the pictures of one of them suffice."""
        return self.name, self.trials[0].corpus, self.trials[0].arm

    @property
    def sections(self) -> tuple[SectionName, ...]:
        """Return the sections of the complete analysis."""
        return self.options.sections or ()


def wanted_analyses(trials: Trials, plan: Plan) -> Iterator[AnalysisSpec]:
    """Every analysis that the study asks for: of all of its runs, of those of a corpus, or of each.

    Raises: UserError for one that does not name its sections.
    """
    study = trials.study
    for name, settings in study.analyses.items():
        options = _options(study, name, settings)
        arms = [arm for arm in trials.arms.values() if arm.family in settings.arms]
        of_corpora = [
            [trial for arm in arms for seed in arm.seeds if (trial := final_trial(plan, arm, corpus, seed)) is not None]
            for corpus in study.corpora
        ]
        every = [trial for found in of_corpora for trial in found]
        groups = {"study": [every], "corpus": of_corpora, "run": [[trial] for trial in every]}[settings.of]
        for group in filter(None, groups):  # a corpus that none of the arms is trained on has none
            keys = [f"{trials.key(trial)} {trials.arms[trial.arm].of_run}" for trial in group]
            yield AnalysisSpec(name, settings, options, tuple(group), key_of_analysis(settings.of, options, keys))


def reads_models(wanted: AnalysisSpec) -> bool:
    """Return whether the analysis needs the trained weights in addition to the runs' files."""
    if wanted.settings.of == "run":
        return True
    return any(question.reads_models for name, question in RUN_QUESTIONS.items() if name in wanted.sections)


def kept_analysis(wanted: AnalysisSpec, folders: Sequence[Path]) -> Path | None:
    """The folder of a whole analysis of that key."""
    for folder in folders:
        found = folder / wanted.key
        content = _read(found)
        if content is not None and set(wanted.sections) <= set(content["results"]):
            return found
    return None


def make_analysis(wanted: AnalysisSpec, trials: Trials, folder: Path) -> Path:
    """Analyse the runs, all of which must be there; the folder of the result.

    Raises: UserError where they cannot be analysed.
    """
    runs = [run for trial in wanted.trials if (run := trials.run(trial)) is not None]
    target = folder / wanted.key
    where: dict[str, Any] = {"output": str(target)}
    if wanted.settings.of != "run":
        where["runs"] = tuple(dict.fromkeys(str(run.folder) for run in runs))
    else:
        where["run"] = str(runs[0].folder)
        where["arm"] = trials.arms[wanted.trials[0].arm].of_run
    analyze(wanted.options.model_copy(update=where))
    return target


def analysed(wanted: AnalysisSpec, folder: Path, trials: Trials) -> AnalysisResult:
    """Return the result of the analysis in a folder."""
    content = _read(folder)
    assert content is not None
    runs = [run for trial in wanted.trials if (run := trials.run(trial)) is not None]
    single = wanted.trials[0] if wanted.settings.of == "run" else None
    corpus = wanted.trials[0].corpus
    return AnalysisResult(
        name=wanted.name,
        where=wanted.settings.where if wanted.settings.of == "study" else f"{wanted.settings.where}, {corpus}",
        seed=None if single is None else single.seed,
        steps=None if single is None or not runs else runs[0].planned_steps,
        results={name: _result(folder, name, found) for name, found in content["results"].items()},
        runs=tuple(dict.fromkeys(run.folder for run in runs)),
        seeds=len({trial.seed for trial in wanted.trials}),
    )


def pictures_of(wanted: AnalysisSpec, folder: Path) -> Iterator[Picture]:
    """The pictures of an analysis that lie beside it, with their numbers."""
    content = _read(folder) or {"pictures": {}}
    for section in wanted.sections:
        for picture in content["pictures"].get(section, ()):
            image, numbers = (folder / FIGURES / f"{picture['name']}{suffix}" for suffix in (".png", ".csv"))
            if image.is_file() and numbers.is_file():
                headings, *rows = csv.reader(numbers.read_text(encoding="utf-8").splitlines())
                name, of_what = _named(wanted)
                caption = f"{of_what}{picture['caption']}"
                yield Picture(f"{name}_{picture['name']}", caption, table(headings, rows), image.read_bytes())


def _named(wanted: AnalysisSpec) -> tuple[str, str]:
    """A name for files, and what is said before a caption: of which runs this is."""
    first = wanted.trials[0]
    if wanted.settings.of == "run":
        arm = re.sub(r"\W", "_", first.arm)
        return f"{wanted.name}_{arm}_{first.corpus}", f"{first.arm} on {first.corpus}, seed {first.seed}: "
    if wanted.settings.of == "corpus":
        return f"{wanted.name}_{first.corpus}", f"{first.corpus}: "
    return wanted.name, ""


def _options(study: StudySettings, name: str, settings: AnalysisSettings) -> AnalyzeSettings:
    overrides = quote_paths([*settings.overrides, *study.analyze])
    options = validated(plain_values(compose(overrides, "analyze")), AnalyzeSettings)
    if options.sections is None:  # one that broke off would look like one of a model that has no others
        raise UserError(f"study={study.name}: analysis {name}: needs its sections; add sections=[…] to its overrides")
    return options


def key_of_analysis(of: str, options: AnalyzeSettings, keys: Sequence[str]) -> str:
    """Return a key of the request, without its output folder and technical settings.

    A key of the settings that is younger than kept analyses counts where it says something: theirs do not have it.
    """
    asked = options.model_dump(mode="json", exclude={"output", "processes", "device", "run", "runs"})
    asked = {name: value for name, value in asked.items() if name not in _YOUNGER or value is not None}
    text = json.dumps([of, asked, sorted(keys)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:KEY_LENGTH]


def _read(folder: Path) -> dict[str, Any] | None:
    try:
        content = read_json(folder / RESULTS)
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) and isinstance(content.get("results"), dict) else None


def _result(folder: Path, name: str, content: Any) -> Any:
    """Return the result of a question. Raises: UserError for one that lacks a field, or has another."""
    questions: Mapping[str, Question[Any, Any]] = {**MODEL_QUESTIONS, **RUN_QUESTIONS}
    kind = questions[name].result
    try:
        return content if kind is Section else from_json(kind, content, name)
    except ValueError as error:
        raise UserError(f"{folder / RESULTS}: {error}") from error
