"""The process that owns wandb: reads messages on its standard input, answers with states on its standard output.

wandb starts threads and a service, patches `sys.exit`, and raises at exit when its service is gone; when the service
hangs, it hangs. In a process of its own none of that can reach the training, which can stop this one at any time.

Run as a script by `natattn.tracking.wandb`; imports nothing of natattn, so that a path is enough to find it.
One JSON object a line.
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

# wandb's service logs a failed write and goes on as if nothing was, so the disk is tried from here.
PROBE_BYTES = 1 << 16
PROBE_EVERY_SECONDS = 5.0


def main() -> None:
    messages, states = _private_pipes()

    def tell(**state: str) -> None:
        with contextlib.suppress(OSError):  # a training that was killed still gets its run finished
            print(json.dumps(state), file=states, flush=True)

    # wandb makes folders when it is imported, and leaves it to its exit hooks to remove them.
    with tempfile.TemporaryDirectory(prefix="natattn_wandb_", ignore_cleanup_errors=True) as tempfile.tempdir:
        try:
            _mirror(messages, tell)
            outcome = {"state": "finished"}
        except BaseException as error:  # wandb's login failure is a SystemExit in some versions
            outcome = {"state": "failed", "reason": _one_line(error)}
    tell(**outcome)
    # wandb's own exit hooks wait for a service that may be gone; it notices by itself that this process ended.
    os._exit(0)


def _private_pipes() -> tuple[TextIO, TextIO]:
    """Takes standard input and output away from wandb, its service and whatever they print."""
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
    exit_code = 1  # of a training that ends without a word
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
    # Arms and resumed parts may log the same step again: `step` is a column here, not wandb's own counter.
    run.define_metric("step")
    run.define_metric("*", step_metric="step")
    return run


def _end_service() -> None:
    import wandb

    # Ends the service and reaps it: in a container without an init process it would stay a zombie.
    wandb.teardown()


def _probe(folder: Path) -> None:
    """Raises OSError where the run's folder takes no more data (full disk, quota, read-only, gone)."""
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
