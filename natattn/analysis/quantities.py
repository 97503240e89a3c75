"""Quantities of an arm: name, unit, value and number format of each."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from textwrap import fill
from typing import Literal

from natattn.analysis.data_facts import UNITS
from natattn.analysis.runs import ArmSummary, RunSummary
from natattn.report.table import NOTHING

# Unit of a quantity; "nats" are nats/token, nats/image or nats/pair, depending on the run's unit.
Unit = Literal["", "nats", "nats/byte", "share", "s", "bytes", "ratio"]
Value = Callable[[RunSummary, ArmSummary], float | None]


@dataclass(frozen=True)
class Quantity:
    """One measured quantity of an arm.

    Attributes:
        title: its row in the table of a run.
        heading: its column in the table of a sweep; None to leave it out.
        value: of an arm of a run; None if it has none.
        show: writes a value.
        unit: of the value.
        missing: written if there is no value.
    """

    title: str
    heading: str | None
    value: Value
    show: Callable[[float], str]
    unit: Unit = ""
    missing: Callable[[RunSummary, ArmSummary], str] = lambda run, arm: NOTHING

    @property
    def is_loss(self) -> bool:
        """True if the difference candidate − reference is of interest, in nats."""
        return self.unit in ("nats", "nats/byte")

    @property
    def is_share(self) -> bool:
        """True if the difference candidate − reference is of interest, in points."""
        return self.unit == "share"

    def title_in(self, run_unit: str) -> str:
        """Return the title with its unit, in runs whose losses are means over tokens, images or pairs."""
        return self.title.strip() + {"nats": f", nats/{run_unit}", "bytes": ", GiB"}.get(self.unit, "")


def loss(value: float) -> str:
    """Write nats, or nats/byte."""
    return f"{value:.4f}"


def count(value: float) -> str:
    """Write steps, or tokens, images or pairs per second."""
    return f"{value:,.0f}"


def perplexity(value: float) -> str:
    """Write exp of a loss in nats/token."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.2f}"


def seconds(value: float) -> str:
    """Write a time in seconds."""
    return f"{value:,.0f} s" if value >= 1000 else f"{value:.1f} s"


def memory(value: float) -> str:
    """Write bytes as MiB or GiB."""
    return f"{value / 2**30:.2f} GiB" if value >= 2**30 else f"{value / 2**20:.0f} MiB"


def ratio(value: float) -> str:
    """Write a ratio as a factor."""
    return f"{value:.3f}×"


def _nats_per_byte(run: RunSummary, loss: float | None) -> float | None:
    text = run.data.text if run.data else None
    return None if loss is None or text is None else loss * text.tokens_per_byte


def _perplexity(run: RunSummary, loss: float | None) -> float | None:
    if loss is None or run.unit != "token":
        return None
    return math.exp(min(loss, 700.0))  # 700: the largest that does not overflow


def _diverged(run: RunSummary, arm: ArmSummary) -> str:
    return NOTHING if arm.diverged_at is None else "diverged"


def _not_reached(run: RunSummary, arm: ArmSummary) -> str:
    return NOTHING if run.target is None or arm.steps_to_target is not None else "not reached"


def share(value: float) -> str:
    """Write a share of 1 in per cent."""
    return f"{100 * value:.1f} %"


def points(difference: float) -> str:
    """Write a difference of shares in points, with its sign; one that is rounded to zero has no minus."""
    return f"{round(100 * difference, 1) + 0.0:+.1f}"


_SPLITS = ("validation", "test")
_NARROW = 11  # letters in a line of a heading of several lines
# {metric that a task measures next to the loss: its name}; all are shares.
TASK_METRICS = {
    "accuracy": "accuracy",
    "calibration_error": "calibration error",
    "image_to_text_recall_1": "image → text recall@1",
    "image_to_text_recall_5": "image → text recall@5",
    "text_to_image_recall_1": "text → image recall@1",
    "text_to_image_recall_5": "text → image recall@5",
}


def task_metric(metric: str, run: RunSummary, arm: ArmSummary) -> float | None:
    """Return the last value of a task's metric, such as test/accuracy."""
    return arm.metrics.get(metric)


def task_metrics(arm: ArmSummary) -> dict[str, float]:
    """Return {title: share} of all task metrics of an arm."""
    names = ((f"{split}/{name}", f"{split} {title}") for split in _SPLITS for name, title in TASK_METRICS.items())
    return {title: arm.metrics[name] for name, title in names if name in arm.metrics}


def _speed(unit: str, run: RunSummary, arm: ArmSummary) -> float | None:
    return arm.units_per_second if run.unit == unit else None


def _metrics(split: str) -> Iterator[Quantity]:
    """The task metrics of a split."""
    for name, title in TASK_METRICS.items():
        value = partial(task_metric, f"{split}/{name}")
        heading = fill(f"{split} {title}", _NARROW, break_long_words=False)
        yield Quantity(f"{split} {title}", heading, value, share, "share")


def _speeds() -> Iterator[Quantity]:
    """The speed in each unit; a run has that of its own."""
    for unit in UNITS:
        yield Quantity(f"{unit}s/s", f"{unit}s/s", partial(_speed, unit), count)


FINAL_LOSS = Quantity("final validation loss", "final", lambda run, arm: arm.final_loss, loss, "nats", _diverged)

QUANTITIES = (
    FINAL_LOSS,
    Quantity("  perplexity", "perplexity", lambda run, arm: _perplexity(run, arm.final_loss), perplexity),
    Quantity("  nats/byte", "nats/byte", lambda run, arm: _nats_per_byte(run, arm.final_loss), loss, "nats/byte"),
    Quantity("best validation loss", "best", lambda run, arm: arm.best_loss, loss, "nats"),
    Quantity("  perplexity", None, lambda run, arm: _perplexity(run, arm.best_loss), perplexity),
    Quantity("  nats/byte", None, lambda run, arm: _nats_per_byte(run, arm.best_loss), loss, "nats/byte"),
    Quantity("  at step", None, lambda run, arm: arm.best_step, count),
    *_metrics("validation"),
    Quantity("test loss", "test", lambda run, arm: arm.test_loss, loss, "nats"),
    *_metrics("test"),
    Quantity("steps to target", "steps to target", lambda run, arm: arm.steps_to_target, count, "", _not_reached),
    Quantity("seconds to target", "time to target", lambda run, arm: arm.seconds_to_target, seconds, "s", _not_reached),
    *_speeds(),
    Quantity("step time / reference", "step time", lambda run, arm: arm.step_time_ratio, ratio, "ratio"),
    Quantity("peak memory", "memory", lambda run, arm: arm.peak_memory_bytes, memory, "bytes"),
)
