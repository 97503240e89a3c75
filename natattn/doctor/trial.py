"""A run in little: both arms learn, the metrics are written, and a run that broke off goes on to the same numbers."""

import contextlib
import io
import math
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from natattn.doctor.findings import Finding

STEPS, STOP = 40, 20
_OPTIONS = (
    "size=pico",
    "size.n_layer=2",
    "size.n_embd=32",
    "size.n_head=2",
    "size.context=32",
    "data=grammar",
    "data.train_tokens=20000",
    "data.validation_tokens=1000",
    "data.test_tokens=0",
    "tokenizer=byte",
    "tracker=off",
    "schedule=constant",
    "schedule.warmup_steps=5",
    "train.batch_size=8",
    "train.evaluate_every=20",
    "train.checkpoint_every=20",
    "train.log_every=5",
    "train.max_seconds=120",
)
_ADVICE = "train it yourself to see why: natattn train experiment=quick"


def training() -> Iterator[Finding]:
    """Trains in a temporary folder, with a cache of its own: what is wrong with the user's is found elsewhere."""
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="natattn_doctor_") as scratch, _cache_in(scratch):
        whole, stopped = Path(scratch, "whole"), Path(scratch, "stopped")
        _train(whole, STEPS)
        yield _learning(whole)
        _train(stopped, STOP)
        _train(stopped, STEPS, resume=True)
        yield _resumption(whole, stopped)
    yield Finding("time", f"{time.perf_counter() - started:.1f} s for {2 * STEPS} small steps of both arms")


def _train(folder: Path, steps: int, *, resume: bool = False) -> None:
    """Raises: RuntimeError where the run does not end as it should."""
    from natattn.config import compose as config
    from natattn.training.train import train

    settings = config.settings_of(config.compose([*_OPTIONS, f"train.steps={steps}"]))
    if resume:
        settings = settings.model_copy(update={"resume": str(folder)})
    nowhere = io.StringIO()
    with contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        outcome = train(settings, folder).outcome
    if outcome != "finished":
        raise RuntimeError(f"a run of {steps} small steps ended with: {outcome}")


def _learning(folder: Path) -> Finding:
    """Whether the validation loss of every arm has fallen, by what the metrics file says."""
    falls = {}
    for arm in ("standard", "natural"):
        losses = [value for _, name, value in _losses(folder) if name == f"{arm}/validation/loss"]
        falls[arm] = (losses[0], losses[-1]) if len(losses) > 1 else (math.nan, math.nan)
    found = ", ".join(f"{arm} {first:.3f} → {last:.3f} nats" for arm, (first, last) in falls.items())
    if all(last < 0.98 * first for first, last in falls.values()):
        return Finding("both arms learn", found)
    return Finding("both arms learn", f"no: {found}", "broken", _ADVICE)


def _resumption(whole: Path, stopped: Path) -> Finding:
    """Whether a run that was stopped half-way has the losses of one that was not."""
    first, second = _losses(whole), _losses(stopped)
    if first == second:
        return Finding("resuming", f"to the same bits ({len(first)} losses)")
    worst = max((abs(a[2] - b[2]) for a, b in zip(first, second, strict=False)), default=math.inf)
    if [each[:2] for each in first] == [each[:2] for each in second] and worst < 1e-3:
        advice = "this machine's arithmetic differs from run to run: train.deterministic=true gives the same bits"
        return Finding("resuming", f"works, losses differ by up to {worst:.1g} nats", "note", advice)
    return Finding("resuming", f"does not give the same losses: they differ by up to {worst:.1g}", "broken", _ADVICE)


def _losses(folder: Path) -> list[tuple[int, str, float]]:
    """(step, arm/name, value) of all losses."""
    from natattn.tracking.metrics_file import FILE_NAME, read_metrics

    metrics = read_metrics(folder / FILE_NAME)
    columns = zip(metrics.step, metrics.arm, metrics.name, metrics.value, strict=True)
    found = [(int(s), f"{arm}/{name}", float(value)) for s, arm, name, value in columns if name.endswith("/loss")]
    return sorted(found)


@contextlib.contextmanager
def _cache_in(folder: str) -> Iterator[None]:
    before = os.environ.get("NATATTN_CACHE")
    os.environ["NATATTN_CACHE"] = os.path.join(folder, "cache")
    try:
        yield
    finally:
        if before is None:
            del os.environ["NATATTN_CACHE"]
        else:
            os.environ["NATATTN_CACHE"] = before
