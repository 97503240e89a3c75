"""`natattn analyze`: load, measure section by section, and keep each that is done, so that it can go on from there."""

import fcntl
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from natattn.analysis.progress import SectionProgress
from natattn.analysis.run_set import load_runs
from natattn.analysis.sections.measures import MEASURES, OF_LANGUAGE_MODELS, OF_TWO_SEQUENCES, TEXT_ONLY
from natattn.analysis.sections.run_measures import RUN_MEASURES
from natattn.analysis.settings import AnalyzeSettings, ModelSection, SectionName
from natattn.analysis.subject import Subject, load_subject
from natattn.errors import UserError
from natattn.models.settings import PretrainedInit
from natattn.report.page import render
from natattn.report.section import SECTION_KEYS, Section
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


def analyze(settings: AnalyzeSettings) -> tuple[Path, list[dict[str, Any]]]:
    """Measure what the settings ask for, and return the page and its sections (as ``Section.to_json`` gives them).

    The folder holds analysis.json (settings, findings, tables), figures/ (PNG, and CSV with the numbers of each) and
    analysis.html. Sections that are there already, of the same subject and settings, are not made again.

    Raises: UserError for a subject that is not there or does not fit.
    """
    _check(settings)
    names: Sequence[SectionName]
    measures: dict[str, Callable[[Callable[[int], None]], Section]]
    if settings.runs is None:
        subject = load_subject(settings, chosen_device(settings.device))
        measures = {name: partial(measure, subject, settings) for name, measure in MEASURES.items()}
        names = _applicable(subject)
        _check_applicable(settings, subject, names)
        title, folder = f"Attention of {subject.name}", _folder(settings, subject)
        results = _Results(folder, settings, subject.facts, subject.source)
    else:
        runs = load_runs(settings)
        measures = {name: partial(of_runs.section, runs, settings) for name, of_runs in RUN_MEASURES.items()}
        title, folder = f"Runs {runs.name}", runs.folder
        names = [name for name, of_runs in RUN_MEASURES.items() if of_runs.applies(runs)]
        results = _Results(folder, settings, runs.facts, runs.source)
    names = list(settings.sections or names)
    with SectionProgress(names) as progress:
        for name in names:
            if name in results.sections:
                progress.skip(name)
                continue
            started = time.perf_counter()
            section = measures[name](progress.begin(name))
            results.add(section, time.perf_counter() - started)
            progress.end(name)
    return results.write_page(title, names), [results.sections[name] for name in names]


def print_summary(sections: Sequence[dict[str, Any]], *, stream: TextIO) -> None:
    """A table of what each section found first; the page has the rest."""
    from rich.console import Console
    from rich.table import Table

    table = Table("section", "first finding", "of", show_lines=True)
    for section in sections:
        findings = section["findings"]
        table.add_row(section["title"], findings[0] if findings else "", str(len(findings)))
    width = None if stream.isatty() else WIDTH_WITHOUT_TERMINAL
    Console(file=stream, width=width, markup=False, highlight=False).print(table)


def _applicable(subject: Subject) -> list[ModelSection]:
    """The sections that can be made of a subject."""
    return [
        name
        for name in MEASURES
        if (subject.predicts_tokens or name not in OF_LANGUAGE_MODELS)
        and not (subject.reads_images and name in TEXT_ONLY)
        and not (subject.is_encoder_decoder and name not in OF_TWO_SEQUENCES)
    ]


def _check_applicable(settings: AnalyzeSettings, subject: Subject, names: Sequence[str]) -> None:
    """Raises: UserError for a section that cannot be made of the subject; of text, those of language models say why."""
    for name in settings.sections or ():
        if name not in names and (subject.reads_images or name not in OF_LANGUAGE_MODELS):
            raise UserError(f"sections: {name} is not of {type(subject.model).__name__}; valid: {', '.join(names)}")


def _check(settings: AnalyzeSettings) -> None:
    """Refuse what does not go together, before anything is loaded."""
    if settings.runs is not None and (settings.run is not None or isinstance(settings.init, PretrainedInit)):
        raise UserError("runs, run and init=pretrained: give one of them")
    if settings.tower is not None and settings.run is None:
        raise UserError(f"tower={settings.tower}: is of one run; give run=FOLDER, or leave it out")
    valid = list(MEASURES if settings.runs is None else RUN_MEASURES)
    for name in settings.sections or ():
        if name not in valid:
            of = "one model; give run= or init=pretrained" if name in MEASURES else "several runs; give runs="
            raise UserError(f"sections: {name} is of {of}; valid here: {', '.join(valid)}")


class _Results:
    """What is on disk of an analysis."""

    def __init__(self, folder: Path, settings: AnalyzeSettings, facts: dict[str, str], source: str) -> None:
        self.folder, self.facts = folder, facts
        measured = settings.model_dump(mode="json", exclude=_NOT_MEASURED) | {"source": source}
        self.key = hash_of(measured)
        self.settings = measured
        self.sections = self._read()

    def _read(self) -> dict[str, dict[str, Any]]:
        """The sections on disk that were made of the same, whole with their pictures."""
        try:
            kept = read_json(self.folder / RESULTS)
            if kept["key"] == self.key:
                return {name: section for name, section in kept["sections"].items() if self._is_whole(section)}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            pass  # none, or one that is damaged: it is made anew
        return {}

    def _is_whole(self, section: dict[str, Any]) -> bool:
        if not set(SECTION_KEYS) <= set(section):
            return False
        names = [str(picture["name"]) for picture in section["pictures"]]
        words = [section["title"], *section["findings"]]
        if any(Path(name).name != name for name in names) or not all(isinstance(word, str) for word in words):
            return False
        render("", {}, [section], dict.fromkeys(names, b""))  # what cannot be shown raises, and is made anew
        return all((self.folder / FIGURES / f"{name}.png").is_file() for name in names)

    def add(self, section: Section, seconds: float) -> None:
        """Write a section: pictures first, so that what the results name is there."""
        try:
            (self.folder / FIGURES).mkdir(parents=True, exist_ok=True)
            for picture in section.pictures:
                picture.write(self.folder / FIGURES)
            with _alone_in(self.folder):
                # Another analysis may have added sections of its own meanwhile.
                self.sections = self._read() | self.sections
                self.sections[section.name] = section.to_json() | {"seconds": round(seconds, 1)}
                write_json(
                    self.folder / RESULTS,
                    {"key": self.key, "subject": self.facts, "settings": self.settings, "sections": self.sections},
                )
        except OSError as error:
            raise UserError(f"{self.folder}: cannot be written to: {error.strerror}") from error

    def write_page(self, title: str, names: Sequence[str]) -> Path:
        """The page of the sections that were asked for, in their order."""
        sections, path = [self.sections[name] for name in names], self.folder / PAGE
        try:
            pictures = {
                picture["name"]: (self.folder / FIGURES / f"{picture['name']}.png").read_bytes()
                for section in sections
                for picture in section["pictures"]
            }
            with replacing(path) as temporary:
                temporary.write_text(render(title, self.facts, sections, pictures), encoding="utf-8")
        except OSError as error:
            raise UserError(f"{path}: cannot be written: {error.strerror}") from error
        return path


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Wait until no other process is between these lines for the folder; the system lets go of it if this one dies."""
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
