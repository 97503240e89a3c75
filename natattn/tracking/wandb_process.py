"""The process that runs wandb: it reads messages on standard input and writes states to standard output.

wandb starts threads and a service, patches `sys.exit`, and raises at exit if its service is gone. If the service hangs,
wandb blocks the exit of its interpreter (seen with wandb 0.31). A separate process can be killed instead.

Run as a script by `natattn.tracking.wandb`; imports nothing from natattn, so that a path suffices to find it.
One JSON object per line.
In: `{"start": {...}}`, then `{"rows": [...]}` and `{"summary": {...}}`, then `{"finish": exit_code}`.
Out: `{"state": "started"}`, `{"state": "finished"}` or `{"state": "failed", "reason": "..."}`.
"""

import contextlib
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any, TextIO

# wandb's service logs a failed write and continues, so the disk is tested from here.
PROBE_BYTES = 1 << 16
PROBE_EVERY_SECONDS = 5.0


def main() -> None:
    messages, states = _private_pipes()

    def tell(**state: str) -> None:
        with contextlib.suppress(OSError):  # if training was killed, still finish its run
            print(json.dumps(state), file=states, flush=True)

    # wandb creates folders on import and removes them only in its exit hooks.
    with tempfile.TemporaryDirectory(prefix="natattn_wandb_", ignore_cleanup_errors=True) as tempfile.tempdir:
        try:
            _mirror(messages, tell)
            outcome = {"state": "finished"}
        except BaseException as error:  # a failed login is a SystemExit in some releases of wandb
            outcome = {"state": "failed", "reason": _one_line(error)}
    tell(**outcome)
    # wandb's exit hooks wait for a service that may be gone; the service notices the end of this process by itself.
    os._exit(0)


def _private_pipes() -> tuple[TextIO, TextIO]:
    """Duplicate standard input and output and point the originals, which wandb may use, to the null device."""
    messages = os.fdopen(os.dup(0), "r", encoding="utf-8")
    states = os.fdopen(os.dup(1), "w", encoding="utf-8")
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 0)
    os.dup2(nowhere, 1)
    return messages, states


def _mirror(messages: TextIO, tell: Any) -> None:
    run = _start(json.loads(messages.readline())["start"])
    folder = Path(run.settings.sync_dir)
    _probe(folder)
    tell(state="started")
    next_probe = time.monotonic() + PROBE_EVERY_SECONDS
    exit_code = 1  # if training ends without a message
    for line in messages:
        message = json.loads(line)
        if "finish" in message:
            exit_code = message["finish"]
            break
        for row in message.get("rows", ()):
            run.log(row)
        run.summary.update(message.get("summary", {}))
        if time.monotonic() >= next_probe:
            _probe(folder)
            next_probe = time.monotonic() + PROBE_EVERY_SECONDS
    run.finish(exit_code=exit_code)
    _probe(folder)
    _end_service()


def _start(start: dict[str, Any]) -> Any:
    import wandb

    settings = wandb.Settings(
        silent=True,
        console="off",
        disable_code=True,
        save_code=False,
        disable_git=True,
        disable_job_creation=True,
        symlink=False,
        init_timeout=start.pop("init_timeout"),
        x_disable_machine_info=True,
        x_disable_meta=True,
        x_disable_stats=True,
        x_save_requirements=False,
    )
    run = wandb.init(settings=settings, **start)
    # Arms and resumed runs log the same step again, so `step` is a column instead of wandb's own counter.
    run.define_metric("step")
    run.define_metric("*", step_metric="step")
    return run


def _end_service() -> None:
    import wandb

    # End and reap the service: in a container without an init process it would remain a zombie.
    wandb.teardown()


def _probe(folder: Path) -> None:
    """Raise OSError if the run's folder cannot be written to (full disk, quota, read-only, removed)."""
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(bytes(PROBE_BYTES))
        file.flush()
        os.fsync(file.fileno())


def _one_line(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


if __name__ == "__main__":
    main()
