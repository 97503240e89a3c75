"""How a run says that it lacked memory or a disk, and how it goes on."""

import contextlib
import shlex
from collections.abc import Iterator
from pathlib import Path

from natattn.errors import ResourceError
from natattn.storage.atomic import is_of_the_disk, what_to_mend
from natattn.training.memory import told_where
from natattn.training.run_folder import CONFIG, read_run
from natattn.training.settings import RunSettings


@contextlib.contextmanager
def lack_told(settings: RunSettings, folder: Path, resumed: str) -> Iterator[None]:
    """Name what a run in ``folder`` lacked, and how to go on with it.

    Args:
        resumed: what ``resume=`` takes to go on.

    Raises: ResourceError in place of whatever says so.
    """
    try:
        with told_where(f"size={settings.size.name}", anew="a smaller size="):
            yield
    except ResourceError as error:
        anew = f"; or start a new run with {error.anew}" if error.anew else ""
        also = " and " if error.mend else "; "
        raise ResourceError(
            f"{error}{also}{way_on(folder, f'{resumed} {error.resume_with}'.rstrip())}{anew}"
        ) from error
    except OSError as error:
        if not is_of_the_disk(error):
            raise
        where = f"{error.filename or folder}: {error.strerror}; {what_to_mend(error)}"
        raise ResourceError(f"{where} and {way_on(folder, resumed)}") from error


def way_on(folder: Path, resumed: str) -> str:
    """What to do about a run that has broken off."""
    if not _has_begun(folder):
        return "start it again: there is nothing yet to go on with"
    if read_run(folder).get("status") in ("finished", "diverged"):
        return f"see what it came to: natattn report {shlex.quote(str(folder))}"
    return f"go on with natattn train resume={resumed}"


def _has_begun(folder: Path) -> bool:
    return any((each / CONFIG).exists() for each in (folder, *folder.glob("seed*")))
