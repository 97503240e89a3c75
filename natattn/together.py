"""Processes that torchrun has started: how they join, and how they end when one of them does.

torchrun restarts all ranks when one dies and restarts are allowed; the launcher's own key–value store outlives them and
remembers the run's folder, so that a restart goes on instead of beginning again.
"""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from natattn.ranks import Ranks

TIMEOUT = timedelta(minutes=10)  # of one collective: longer than any evaluation, checkpoint or data preparation
_FOLDER = "natattn/run_folder"
_LOST = "natattn/lost"
_SIGNS_OF_LOSS = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Timed out waiting")


class LostRankError(Exception):
    """Another rank has ended, and this one cannot go on without it."""


@contextlib.contextmanager
def joined() -> Iterator["Ranks"]:
    """The ranks that torchrun has started, until the end of the block.

    Raises: LostRankError when another rank ends before this one does.
    """
    import torch
    import torch.distributed as dist

    from natattn.ranks import Ranks

    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo", timeout=TIMEOUT)
        yield Ranks.of_group()
    except RuntimeError as error:
        if isinstance(error, dist.DistError) or any(sign in str(error) for sign in _SIGNS_OF_LOSS):
            raise LostRankError(_cause(error)) from error
        raise
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _cause(error: Exception) -> str:
    """What the transport says, without where in its code and the advice that follows."""
    found = [sign for sign in _SIGNS_OF_LOSS if sign in str(error)]
    return found[0].lower() if found else next(iter(str(error).splitlines()), type(error).__name__)


class LauncherStore:
    """The key–value store of torchrun, which lives as long as the launcher does; silent where there is none."""

    def __init__(self) -> None:
        import torch.distributed as dist

        self._store: Any = None
        if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
            host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
            with contextlib.suppress(RuntimeError):
                self._store = dist.TCPStore(  # type: ignore[attr-defined]
                    host, port, is_master=False, timeout=timedelta(seconds=30)
                )

    def remember_folder(self, folder: str) -> None:
        """Where the run is, for the ranks of the next restart."""
        if self._store is not None:
            self._store.set(_FOLDER, folder)

    def remembered_folder(self) -> str | None:
        """Where the run is that an earlier attempt of this launch has begun."""
        if self._store is None or os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0":
            return None
        return self._store.get(_FOLDER).decode() if self._store.check([_FOLDER]) else None

    def is_first_to_report(self) -> bool:
        """Whether no other rank of this attempt has reported that one is lost."""
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        return self._store is None or self._store.add(f"{_LOST}/{attempt}", 1) == 1


def started_by_torchrun() -> bool:
    """Whether this process is one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def together(work: Callable[["Ranks", LauncherStore], int]) -> int:
    """What all ranks do together; where one of them ends before its time, the others say so in one line."""
    store = LauncherStore()
    try:
        with joined() as ranks:
            return work(ranks, store)
    except LostRankError as error:
        if store.is_first_to_report():
            print(
                f"natattn: another rank has ended ({error}); where torchrun does not restart them, go on with the same "
                "torchrun line and resume=FOLDER",
                file=sys.stderr,
            )
        return 1
