"""Processes started by torchrun: how they join, and how they end when one of them is lost.

When a rank dies and restarts are allowed, torchrun restarts all ranks. The launcher's key–value store outlives them: it
keeps the run folder, so that a restart resumes the run.
"""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from natattn.distributed.ranks import Ranks

TIMEOUT = timedelta(hours=1)  # of one wait: longer than the first rank takes to prepare a text
_FOLDER = "natattn/run_folder"
_LOST = "natattn/lost"
_MISTAKE = "natattn/mistake"
_SIGNS_OF_LOSS = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Timed out waiting")


class LostRankError(Exception):
    """Another rank has ended, so that this one cannot continue."""


def started_by_torchrun() -> bool:
    """Return whether this process is one of several, or the only one of a launcher that may restart it."""
    size = os.environ.get("WORLD_SIZE", "")  # other programs use this name too
    return (size.isdecimal() and int(size) > 1) or "TORCHELASTIC_RUN_ID" in os.environ


def run_on_all_ranks(work: Callable[["Ranks", "LauncherStore"], int]) -> int:
    """Run work on all ranks; if one ends early, the others report it in one line and return 1."""
    store = LauncherStore()
    try:
        with joined(store) as ranks:
            return work(ranks, store)
    except LostRankError as error:
        if store.is_first_to_report_loss():
            print(
                f"natattn: another rank has ended ({error}); if torchrun does not restart the ranks, resume with the "
                "same torchrun command and resume=FOLDER",
                file=sys.stderr,
            )
        return 1


@contextlib.contextmanager
def joined(store: "LauncherStore") -> Iterator["Ranks"]:
    """Yield the ranks started by torchrun, with an open process group.

    Raises: LostRankError if another rank ends before this one does.
    """
    import torch
    import torch.distributed as dist

    from natattn.distributed.ranks import Ranks

    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if local_rank < torch.cuda.device_count():
        torch.cuda.set_device(local_rank)
    try:
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, timeout=TIMEOUT, **store.rendezvous())
        yield Ranks.of_group()
    except RuntimeError as error:
        signs = [sign for sign in _SIGNS_OF_LOSS if sign in str(error)]
        if isinstance(error, dist.DistError) or signs:
            # The first line is the transport's message; code locations and advice follow it.
            cause = signs[0].lower() if signs else next(iter(str(error).splitlines()), type(error).__name__)
            raise LostRankError(cause) from error
        raise
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


class LauncherStore:
    """The key–value store of torchrun, which lives as long as the launcher; does nothing without a launcher."""

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
        """Return the arguments of ``init_process_group`` with which the ranks of this attempt find each other.

        The store may still hold addresses of dead ranks; a prefix separates the attempts.
        """
        if self._store is None:
            return {}
        from torch.distributed import PrefixStore  # type: ignore[attr-defined]

        self._store.set_timeout(TIMEOUT)
        store = PrefixStore(f"natattn/attempt_{_attempt()}", self._store)
        return {"store": store, "rank": int(os.environ["RANK"]), "world_size": int(os.environ["WORLD_SIZE"])}

    def save_folder(self, folder: str) -> None:
        """Save the run folder for the ranks of the next restart."""
        if self._store is not None:
            self._store.set(_FOLDER, folder)

    def saved_folder(self) -> str | None:
        """Return the run folder of an earlier attempt of this launch."""
        if self._store is None:
            return None
        return self._store.get(_FOLDER).decode() if self._store.check([_FOLDER]) else None

    def is_first_to_report_loss(self) -> bool:
        """Return whether a lost rank has not been reported in this attempt, and was not lost by a user's mistake."""
        return not self._add(_MISTAKE, 0) and self._add(f"{_LOST}/{_attempt()}", 1) == 1

    def is_first_to_report_mistake(self) -> bool:
        """Return whether no other rank has reported a mistake; most are made by all ranks."""
        return self._add(_MISTAKE, 1) == 1

    def _add(self, key: str, amount: int) -> int:
        """Add to a counter of this launch and return it."""
        if self._store is not None:
            with contextlib.suppress(RuntimeError):  # the launcher may have ended too
                return int(self._store.add(key, amount))
        return amount


def _attempt() -> int:
    """Return how often torchrun has restarted the ranks."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
