"""`natattn analyze`: load, measure section by section, and keep each that is done, so that it can go on from there."""

import hashlib
import json
import time
from pathlib import Path
from typing import Any

import torch

from natattn.analysis.measures import MEASURES
from natattn.analysis.page import render
from natattn.analysis.progress import SectionProgress
from natattn.analysis.section import Section
from natattn.analysis.settings import AnalyzeSettings
from natattn.analysis.subject import Subject, load_subject
from natattn.errors import UserError
from natattn.files import replacing, write_json

RESULTS = "analysis.json"
PAGE = "analysis.html"
FIGURES = "figures"
# Keys that change neither what is measured nor how.
_NOT_MEASURED = {"sections", "output", "processes", "device"}


def analyze(settings: AnalyzeSettings) -> Path:
    """Measure what the settings ask for, and return the page.

    The folder holds analysis.json (settings, findings, tables), figures/ (PNG, and CSV with the numbers of each) and
    analysis.html. Sections that are there already, of the same subject and settings, are not made again.

    Raises: UserError for a subject that is not there or does not fit.
    """
    device = _device(settings.device)
    subject = load_subject(settings, device)
    folder = _folder(settings, subject)
    results = _Results(folder, settings, subject)
    with SectionProgress(list(settings.sections)) as progress:
        for name in settings.sections:
            if name in results.sections:
                progress.skip(name)
                continue
            started = time.perf_counter()
            section = MEASURES[name](subject, settings, progress.begin(name))
            results.add(section, time.perf_counter() - started)
            progress.end(name)
    return results.write_page(settings)


class _Results:
    """What is on disk of an analysis."""

    def __init__(self, folder: Path, settings: AnalyzeSettings, subject: Subject) -> None:
        self.folder, self.subject = folder, subject
        measured = settings.model_dump(mode="json", exclude=_NOT_MEASURED) | {"source": subject.source}
        self.key = hashlib.sha256(json.dumps(measured, sort_keys=True).encode()).hexdigest()
        self.settings = measured
        self.sections: dict[str, dict[str, Any]] = {}
        try:
            kept = json.loads((folder / RESULTS).read_text(encoding="utf-8"))
            if kept["key"] == self.key:
                self.sections = {name: s for name, s in kept["sections"].items() if self._has_pictures(s)}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            pass  # none, or one that is damaged: it is made anew

    def _has_pictures(self, section: dict[str, Any]) -> bool:
        return all((self.folder / FIGURES / f"{picture['name']}.png").is_file() for picture in section["pictures"])

    def add(self, section: Section, seconds: float) -> None:
        """Write a section: pictures first, so that what the results name is there."""
        try:
            (self.folder / FIGURES).mkdir(parents=True, exist_ok=True)
            for picture in section.pictures:
                for suffix, content in ((".png", picture.png), (".csv", picture.data.to_csv().encode())):
                    with replacing(self.folder / FIGURES / f"{picture.name}{suffix}") as temporary:
                        temporary.write_bytes(content)
            self.sections[section.name] = section.to_json() | {"seconds": round(seconds, 1)}
            write_json(
                self.folder / RESULTS,
                {
                    "key": self.key,
                    "subject": self.subject.facts,
                    "settings": self.settings,
                    "sections": self.sections,
                },
            )
        except OSError as error:
            raise UserError(f"{self.folder}: cannot be written to: {error.strerror}") from error

    def write_page(self, settings: AnalyzeSettings) -> Path:
        """The page of the sections that were asked for, in their order."""
        sections = [self.sections[name] for name in settings.sections]
        pictures = {
            picture["name"]: (self.folder / FIGURES / f"{picture['name']}.png").read_bytes()
            for section in sections
            for picture in section["pictures"]
        }
        path = self.folder / PAGE
        with replacing(path) as temporary:
            page = render(f"Attention of {self.subject.name}", self.subject.facts, sections, pictures)
            temporary.write_text(page, encoding="utf-8")
        return path


def _folder(settings: AnalyzeSettings, subject: Subject) -> Path:
    if settings.output is not None:
        return Path(settings.output)
    if settings.run is not None:
        return Path(settings.run) / f"analysis_{subject.name.removeprefix(Path(settings.run).name + '_')}"
    return Path("outputs") / f"analysis_{subject.name}"


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"device={name}: no such device; valid: auto, cpu, cuda, cuda:N") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"device={name}: {torch.cuda.device_count()} CUDA devices here; valid: auto, cpu")
    return device
