"""`natattn analyze`: ask one question after another, keep each result, and show all of them on a page."""

import fcntl
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from natattn.analysis.frame import Question, from_json, to_json
from natattn.analysis.progress import SectionProgress
from natattn.analysis.registry import MODEL_QUESTIONS, RUN_QUESTIONS
from natattn.analysis.run_set import load_runs
from natattn.analysis.sections.measures import OF_LANGUAGE_MODELS
from natattn.analysis.settings import AnalyzeSettings
from natattn.analysis.subject import Subject, load_subject
from natattn.errors import UserError
from natattn.models.settings import PretrainedInit
from natattn.report.page import render_analysis
from natattn.report.section import Section
from natattn.storage.atomic import replacing, write_json
from natattn.storage.documents import hash_of, read_json
from natattn.training.devices import chosen_device
from natattn.training.run_folder import check_contained

RESULTS = "analysis.json"
PAGE = "analysis.html"
FIGURES = "figures"
WIDTH_WITHOUT_TERMINAL = 120
# Keys that change neither what is measured nor how.
_NOT_MEASURED = {"sections", "output", "processes", "device"}


def analyze(settings: AnalyzeSettings) -> tuple[Path, list[Section]]:
    """Answer the questions in the settings, and return the page and its sections.

    The folder holds analysis.json (settings and results), figures/ (PNG, and a CSV with the numbers of each) and
    analysis.html. A result that is there already, for the same subject and settings, is not measured again.

    Raises: UserError if the subject does not exist or the settings do not fit it.
    """
    _check(settings)
    questions: Mapping[str, Question[Any, Any]]
    subject: Any
    if settings.runs is None:
        subject, questions = load_subject(settings, chosen_device(settings.device)), MODEL_QUESTIONS
        title, folder = f"Attention of {subject.name}", _folder(settings, subject)
    else:
        subject, questions = load_runs(settings), RUN_QUESTIONS
        title, folder = f"Runs {subject.name}", subject.folder
    applicable = [name for name, question in questions.items() if question.applies(subject)]
    if settings.runs is None:
        for asked in settings.sections or ():
            # For a model of text, the measure itself says why it needs a language model.
            if asked not in applicable and (subject.reads_images or asked not in OF_LANGUAGE_MODELS):
                kind = type(subject.model).__name__
                raise UserError(f"sections: {asked} is not of {kind}; valid: {', '.join(applicable)}")
    kept = _Kept(folder, settings, questions, subject.facts, subject.source)
    names: list[str] = list(settings.sections or applicable)
    with SectionProgress(names) as progress:
        for name in names:
            if name in kept.results:
                progress.skip(name)
                continue
            kept.add(name, questions[name].measure(subject, settings, progress.begin(name)))
            progress.end(name)
    return kept.write_page(title, names)


def print_summary(sections: Sequence[Section], *, stream: TextIO) -> None:
    """Print a table with the first finding of each section."""
    from rich.console import Console
    from rich.table import Table

    table = Table("section", "first finding", "of", show_lines=True)
    for section in sections:
        table.add_row(section.title, section.findings[0] if section.findings else "", str(len(section.findings)))
    width = None if stream.isatty() else WIDTH_WITHOUT_TERMINAL
    Console(file=stream, width=width, markup=False, highlight=False).print(table)


def _check(settings: AnalyzeSettings) -> None:
    """Refuse settings that do not go together, before anything is loaded."""
    if settings.runs is not None and (settings.run is not None or isinstance(settings.init, PretrainedInit)):
        raise UserError("runs, run and init=pretrained: give one of them")
    if settings.tower is not None and settings.run is None:
        raise UserError(f"tower={settings.tower}: is of one run; give run=FOLDER, or leave it out")
    valid = list(MODEL_QUESTIONS if settings.runs is None else RUN_QUESTIONS)
    for name in settings.sections or ():
        if name not in valid:
            of = "one model; give run= or init=pretrained" if name in MODEL_QUESTIONS else "several runs; give runs="
            raise UserError(f"sections: {name} is of {of}; valid here: {', '.join(valid)}")


class _Kept:
    """The results of an analysis in its folder."""

    def __init__(
        self, folder: Path, settings: AnalyzeSettings, questions: Mapping[str, Question[Any, Any]],
        facts: dict[str, str], source: str,
    ) -> None:  # fmt: skip
        self.folder, self.questions, self.facts = folder, questions, facts
        self.settings = settings.model_dump(mode="json", exclude=_NOT_MEASURED) | {"source": source}
        self.key = hash_of(self.settings)
        self.sections: dict[str, Section] = {}
        self.results = self._read()

    def _read(self) -> dict[str, Any]:
        """Return the results in the file that belong to the same subject and settings."""
        try:
            content = read_json(self.folder / RESULTS)
            if content["key"] != self.key:
                return {}
            return {name: from_json(self.questions[name].result, found) for name, found in content["results"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return {}  # no file, or a damaged one: everything is measured again

    def add(self, name: str, result: Any) -> None:
        """Draw a result, and write its figures before the file that names them."""
        try:
            self._draw(name, result)
            with _alone_in(self.folder):
                # Another analysis may have added results of its own meanwhile.
                self.results = self._read() | self.results | {name: result}
                pictures = {
                    of: [{"name": p.name, "caption": p.caption} for p in self._draw(of, found).pictures]
                    for of, found in self.results.items()
                }
                content = {
                    "key": self.key, "subject": self.facts, "settings": self.settings,
                    "results": {of: to_json(found) for of, found in self.results.items()}, "pictures": pictures,
                }  # fmt: skip
                write_json(self.folder / RESULTS, content)
        except OSError as error:
            raise UserError(f"{self.folder}: cannot be written to: {error.strerror}") from error

    def write_page(self, title: str, names: Sequence[str]) -> tuple[Path, list[Section]]:
        """Write the page of the questions that were asked, in their order; return it with its sections."""
        path = self.folder / PAGE
        try:
            sections = [self._draw(name, self.results[name]) for name in names]
            with replacing(path) as temporary:
                temporary.write_text(render_analysis(title, self.facts, sections), encoding="utf-8")
        except OSError as error:
            raise UserError(f"{path}: cannot be written: {error.strerror}") from error
        return path, sections

    def _draw(self, name: str, result: Any) -> Section:
        """Return the section of a result; its figures are written once."""
        if name not in self.sections:
            section = self.questions[name].section(result)
            (self.folder / FIGURES).mkdir(parents=True, exist_ok=True)
            for picture in section.pictures:
                picture.write(self.folder / FIGURES)
            self.sections[name] = section
        return self.sections[name]


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Hold a lock on the folder; the system releases it if this process dies."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _folder(settings: AnalyzeSettings, subject: Subject) -> Path:
    if settings.output is not None:
        return Path(settings.output)
    if settings.run is not None:
        name = f"analysis_{subject.name.removeprefix(Path(settings.run).name + '_')}"
        check_contained(Path(settings.run), [name])
        return Path(settings.run) / name
    return Path("outputs") / f"analysis_{subject.name}"
