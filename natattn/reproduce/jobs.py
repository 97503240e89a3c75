"""Jobs: trials as what would be computed, named by a hash, so that no run is made twice.

A job's key is a hash of the resolved configuration without what does not change the result (where the text lies, how
the run is watched), and of the tokens' fingerprint. The same run is found again under another folder, in another study
and among the published ones.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from natattn.config.compose import quote_paths
from natattn.errors import UserError
from natattn.reproduce.settings import CorpusSettings
from natattn.reproduce.texts import file_overrides
from natattn.storage.atomic import conf_folder, write_json
from natattn.storage.documents import read_json
from natattn.training.build import open_task
from natattn.training.devices import chosen_device
from natattn.training.run_folder import config_hash
from natattn.training.settings import CHANGEABLE, RunSettings, compose_run

# Text and tokenizer are in the fingerprint; of the device its kind counts, whether it was named or found.
NOT_IN_KEY = CHANGEABLE | {"data", "tokenizer", "train.device"}
KEY_LENGTH = 16  # of the hash, in names of folders
# A study's runs end when they are done, and are watched by the study.
ALWAYS = ("tracker=off", "train.max_seconds=null")


@dataclass(frozen=True)
class Job:
    """A run to be made; ``overrides`` compose it."""

    key: str
    overrides: tuple[str, ...]


def job_key(configuration: dict[str, Any], fingerprint: str, device: str) -> str:
    """The key of a resolved configuration on the tokens of that fingerprint, on a device such as cpu or cuda:1."""
    part = config_hash(configuration, without=NOT_IN_KEY)
    return hashlib.sha256(f"{part} {fingerprint} {device.partition(':')[0]}".encode()).hexdigest()[:KEY_LENGTH]


class JobMaker:
    """Makes jobs of overrides, and remembers on disk what they compose to: a study has hundreds.

    Args:
        folder: for texts and what is remembered.
        wikitext: folder of the texts that the user gives.
    """

    def __init__(self, folder: Path, wikitext: str | None) -> None:
        self._texts, self._memory, self._wikitext = folder / "texts", folder / "composed.json", wikitext
        self._fingerprints: dict[str, str] = {}
        self._added = False

    def job(self, corpus: CorpusSettings, overrides: Sequence[str]) -> Job | str:
        """The job; or, where its text was not given, only the key under which it may be among the runs that are done.

        Raises: UserError for overrides that do not compose, or a text that has another fingerprint than the study says.
        """
        files = file_overrides(corpus, self._wikitext, self._texts)
        whole = (*overrides, *ALWAYS, *(files if files is not None else _placeholders(corpus)))
        composed = self._composed(whole)
        device = str(chosen_device(composed["train"]["device"]))
        if files is None:
            return job_key(composed, corpus.fingerprint or "", device)
        fingerprint = self._fingerprint(composed)
        if corpus.fingerprint not in (None, fingerprint):
            raise UserError(
                f"the text of {', '.join(files)} has the fingerprint {fingerprint[:12]}, the study's is "
                f"{str(corpus.fingerprint)[:12]}: it is another text; give the study's, or leave it out"
            )
        return Job(job_key(composed, fingerprint, device), whole)

    def save(self) -> None:
        """Write what was composed, for the next time."""
        if self._added:
            self._memory.parent.mkdir(parents=True, exist_ok=True)
            write_json(self._memory, {"code": code_digest(), "composed": self._remembered})
            self._added = False

    @cached_property
    def _remembered(self) -> dict[str, dict[str, Any]]:
        try:
            kept = read_json(self._memory)
            if kept["code"] == code_digest() and isinstance(kept["composed"], dict):
                return dict(kept["composed"])
        except (OSError, ValueError, KeyError, TypeError):
            pass  # none, or one that is damaged: everything is composed anew
        return {}

    def _composed(self, overrides: tuple[str, ...]) -> dict[str, Any]:
        name = " ".join(overrides)
        if name not in self._remembered:
            settings = compose_run(quote_paths(overrides))
            self._remembered[name] = settings.model_dump(mode="json")
            self._added = True
        return self._remembered[name]

    def _fingerprint(self, composed: dict[str, Any]) -> str:
        parts = {name: composed[name] for name in ("data", "tokenizer", "packing")}
        name = json.dumps(parts, sort_keys=True)
        if name not in self._fingerprints:
            settings = RunSettings.model_validate(composed)
            self._fingerprints[name] = open_task(settings).fingerprint
        return self._fingerprints[name]


@lru_cache
def code_digest() -> str:
    """Changes whenever a file of the program or of its configuration does."""
    package = Path(__file__).parents[1]
    files = sorted([*package.rglob("*.py"), *conf_folder().rglob("*.yaml")])
    states = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return hashlib.sha256(json.dumps(states).encode()).hexdigest()


def _placeholders(corpus: CorpusSettings) -> Iterable[str]:
    """Values for the files that are not there; where they lie is not in the key."""
    return [f"data.{key}=not_given" for key in corpus.files]
