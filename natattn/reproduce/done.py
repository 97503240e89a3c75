"""The runs that are done: trained by a study, by hand, or published; found by what they computed."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from natattn.analysis.runs import RunSummary, find_runs, read_facts, read_run_config, read_run_metrics, summarise_run
from natattn.errors import UserError
from natattn.reproduce.jobs import job_key

# A run that its time limit stopped has not done what was asked.
ENDED = ("finished", "diverged")


class DoneRuns:
    """Finished runs by job key.

    Args:
        folders: where to look, the first first; one that does not exist holds none.
        named: of these the ones that the user named, which must hold runs.

    Raises: UserError for one of those without runs.
    """

    def __init__(self, folders: Iterable[Path | str], named: Collection[str] = ()) -> None:
        self._folders: dict[str, list[Path]] = defaultdict(list)
        self._summaries: dict[Path, RunSummary] = {}
        self._names: dict[Path, list[str]] = {}
        for folder in folders:
            for run in find_runs([folder]) if folder in named else _runs_in(folder):
                self.add(run)

    def add(self, run: Path) -> bool:
        """Take in a run, if it has ended and can be read."""
        key = key_of(run)
        if key is not None and run not in self._folders[key]:
            self._folders[key].append(run)
        return key is not None

    def find(self, key: str, metrics: Sequence[str] = (), *, with_model: bool = False) -> RunSummary | None:
        """The first run of that key that has the metrics, given as patterns, and its trained model where wanted."""
        for folder in self._folders.get(key, ()):
            if with_model and not any(folder.glob("arms/*/model/*.safetensors")):
                continue
            if metrics and not self._has(folder, metrics):
                continue
            if folder not in self._summaries:
                self._summaries[folder] = summarise_run(folder)
            if self._summaries[folder].problem is None:
                return self._summaries[folder]
        return None

    def _has(self, folder: Path, patterns: Sequence[str]) -> bool:
        if folder not in self._names:
            try:
                self._names[folder] = read_run_metrics(folder).names()
            except UserError:
                self._names[folder] = []
        return all(any(fnmatchcase(name, pattern) for name in self._names[folder]) for pattern in patterns)


def key_of(run: Path) -> str | None:
    """The job key of a run folder; None where it has not ended or cannot be read."""
    try:
        facts = read_facts(run)
        if facts["status"] not in ENDED:
            return None
        return job_key(read_run_config(run), facts["data"]["fingerprint"], facts["device"])
    except (UserError, OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _runs_in(folder: Path | str) -> list[Path]:
    try:
        return find_runs([folder])
    except UserError:
        return []
