"""What a table says about an arm: each quantity with its name, its value and how it is written."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from textwrap import fill

from natattn.analysis.data_facts import UNITS
from natattn.analysis.runs import ArmSummary, RunSummary


def _dash(run: RunSummary, arm: ArmSummary) -> str:
    return "—"


@dataclass(frozen=True)
class Quantity:
    """A row of the table of a run (`title`), a column of the table of a sweep (`heading`; None for left out)."""

    title: str
    heading: str | None
    value: Callable[[RunSummary, ArmSummary], float | None]
    show: Callable[[float], str]
    is_loss: bool = False  # then the difference candidate − reference is of interest
    missing: Callable[[RunSummary, ArmSummary], str] = _dash  # written where there is no value
    is_share: bool = False  # then that difference is, in points


def loss(value: float) -> str:
    """Nats, or nats/byte."""
    return f"{value:.4f}"


def count(value: float) -> str:
    """Steps, or tokens, images or pairs a second."""
    return f"{value:,.0f}"


def perplexity(value: float) -> str:
    """exp of a loss in nats/token."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.2f}"


def seconds(value: float) -> str:
    """A time, without digits that nobody reads."""
    return f"{value:,.0f} s" if value >= 1000 else f"{value:.1f} s"


def memory(value: float) -> str:
    """Bytes, as MiB or GiB."""
    return f"{value / 2**30:.2f} GiB" if value >= 2**30 else f"{value / 2**20:.0f} MiB"


def ratio(value: float) -> str:
    """Times as much."""
    return f"{value:.3f}×"


def _nats_per_byte(run: RunSummary, loss: float | None) -> float | None:
    text = run.data.text if run.data else None
    return None if loss is None or text is None else loss * text.tokens_per_byte


def _perplexity(run: RunSummary, loss: float | None) -> float | None:
    if loss is None or run.unit != "token":
        return None
    return math.exp(min(loss, 700.0))  # 700: the largest that does not overflow


def _diverged(run: RunSummary, arm: ArmSummary) -> str:
    return "—" if arm.diverged_at is None else "diverged"


def _not_reached(run: RunSummary, arm: ArmSummary) -> str:
    return "—" if run.target is None or arm.steps_to_target is not None else "not reached"


def share(value: float) -> str:
    """Of 1, in per cent."""
    return f"{100 * value:.1f} %"


def points(difference: float) -> str:
    """A difference of shares with its sign; one that is rounded away has none of its own."""
    return f"{round(100 * difference, 1) + 0.0:+.1f}"


SPLITS = ("validation", "test")
NARROW = 11  # letters of a line of a heading that has several
# {metric of a task: what it is called}; all are shares.
TASK_METRICS = {
    "accuracy": "accuracy",
    "calibration_error": "calibration error",
    "image_to_text_recall_1": "image → text recall@1",
    "image_to_text_recall_5": "image → text recall@5",
    "text_to_image_recall_1": "text → image recall@1",
    "text_to_image_recall_5": "text → image recall@5",
}


def task_metric(metric: str, run: RunSummary, arm: ArmSummary) -> float | None:
    """The last value of what a task measures beside the loss, such as test/accuracy."""
    return arm.metrics.get(metric)


def task_metrics(arm: ArmSummary) -> dict[str, float]:
    """All of these that are known, under what they are called in tables."""
    names = ((f"{split}/{name}", f"{split} {title}") for split in SPLITS for name, title in TASK_METRICS.items())
    return {title: arm.metrics[name] for name, title in names if name in arm.metrics}


def _speed(unit: str, run: RunSummary, arm: ArmSummary) -> float | None:
    return arm.units_per_second if run.unit == unit else None


def _metrics(split: str) -> Iterator[Quantity]:
    """What tasks measure of a split beside its loss."""
    for name, title in TASK_METRICS.items():
        value = partial(task_metric, f"{split}/{name}")
        heading = fill(f"{split} {title}", NARROW, break_long_words=False)
        yield Quantity(f"{split} {title}", heading, value, share, is_share=True)


def _speeds() -> Iterator[Quantity]:
    """One for each unit; runs know that of their own."""
    for unit in UNITS:
        yield Quantity(f"{unit}s/s", f"{unit}s/s", partial(_speed, unit), count)


FINAL_LOSS = Quantity("final validation loss", "final", lambda run, arm: arm.final_loss, loss, True, _diverged)

QUANTITIES = (
    FINAL_LOSS,
    Quantity("  perplexity", "perplexity", lambda run, arm: _perplexity(run, arm.final_loss), perplexity),
    Quantity("  nats/byte", "nats/byte", lambda run, arm: _nats_per_byte(run, arm.final_loss), loss, True),
    Quantity("best validation loss", "best", lambda run, arm: arm.best_loss, loss, True),
    Quantity("  perplexity", None, lambda run, arm: _perplexity(run, arm.best_loss), perplexity),
    Quantity("  nats/byte", None, lambda run, arm: _nats_per_byte(run, arm.best_loss), loss, True),
    Quantity("  at step", None, lambda run, arm: arm.best_step, count),
    *_metrics("validation"),
    Quantity("test loss", "test", lambda run, arm: arm.test_loss, loss, True),
    *_metrics("test"),
    Quantity("steps to target", "steps to target", lambda run, arm: arm.steps_to_target, count, False, _not_reached),
    Quantity(
        "seconds to target", "time to target", lambda run, arm: arm.seconds_to_target, seconds, False, _not_reached
    ),
    *_speeds(),
    Quantity("step time / reference", "step time", lambda run, arm: arm.step_time_ratio, ratio),
    Quantity("peak memory", "memory", lambda run, arm: arm.peak_memory_bytes, memory),
)
