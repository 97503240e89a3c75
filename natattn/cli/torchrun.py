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
    from natattn.distributed.ranks import Ranks

TIMEOUT = timedelta(hours=1)  # of one wait for the others: longer than the first rank takes to prepare a text
_FOLDER = "natattn/run_folder"
_LOST = "natattn/lost"
_MISTAKE = "natattn/mistake"
_SIGNS_OF_LOSS = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Timed out waiting")


class LostRankError(Exception):
    """Another rank has ended, and this one cannot go on without it."""


@contextlib.contextmanager
def joined(store: "LauncherStore") -> Iterator["Ranks"]:
    """The ranks that torchrun has started, until the end of the block.

    Raises: LostRankError when another rank ends before this one does.
    """
    import torch
    import torch.distributed as dist

    from natattn.distributed.ranks import Ranks

    on_gpu = torch.cuda.is_available()
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if local_rank < torch.cuda.device_count():
        torch.cuda.set_device(local_rank)
    try:
        backend = "cpu:gloo,cuda:nccl" if on_gpu else "gloo"
        dist.init_process_group(backend, timeout=TIMEOUT, **store.rendezvous())
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

    def rendezvous(self) -> dict[str, Any]:
        """Where the ranks of this attempt find each other, as arguments of ``init_process_group``.

        The launcher's store may keep the addresses of ranks that have died; a prefix keeps the attempts apart.
        """
        if self._store is None:
            return {}
        from torch.distributed import PrefixStore  # type: ignore[attr-defined]

        self._store.set_timeout(TIMEOUT)
        store = PrefixStore(f"natattn/attempt_{_attempt()}", self._store)
        return {"store": store, "rank": int(os.environ["RANK"]), "world_size": int(os.environ["WORLD_SIZE"])}

    def remember_folder(self, folder: str) -> None:
        """Where the run is, for the ranks of the next restart."""
        if self._store is not None:
            self._store.set(_FOLDER, folder)

    def remembered_folder(self) -> str | None:
        """Where the run is that an earlier attempt of this launch has begun; to be asked before this one begins."""
        if self._store is None:
            return None
        return self._store.get(_FOLDER).decode() if self._store.check([_FOLDER]) else None

    def is_first_to_report_loss(self) -> bool:
        """Whether a lost rank is news: no other has reported one in this attempt, and none was lost by a mistake."""
        return not self._counted(_MISTAKE, 0) and self._counted(f"{_LOST}/{_attempt()}", 1) == 1

    def is_first_to_report_mistake(self) -> bool:
        """Whether no other rank has told the user of a mistake; most are made by all of them."""
        return self._counted(_MISTAKE, 1) == 1

    def _counted(self, key: str, more: int) -> int:
        """Count something up; how often it has been counted in this launch."""
        if self._store is not None:
            with contextlib.suppress(RuntimeError):  # the launcher may have gone as well
                return int(self._store.add(key, more))
        return more


def _attempt() -> int:
    """How often torchrun has restarted the ranks."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def started_by_torchrun() -> bool:
    """Whether this process is one of several, or the only one of a launcher that may restart it."""
    size = os.environ.get("WORLD_SIZE", "")  # of torchrun, or of whatever else takes that name
    return (size.isdecimal() and int(size) > 1) or "TORCHELASTIC_RUN_ID" in os.environ


def together(work: Callable[["Ranks", LauncherStore], int]) -> int:
    """What all ranks do together; where one of them ends before its time, the others say so in one line."""
    store = LauncherStore()
    try:
        with joined(store) as ranks:
            return work(ranks, store)
    except LostRankError as error:
        if store.is_first_to_report_loss():
            print(
                f"natattn: another rank has ended ({error}); where torchrun does not restart them, go on with the same "
                "torchrun line and resume=FOLDER",
                file=sys.stderr,
            )
        return 1
