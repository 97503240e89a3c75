"""What a table says about an arm: each quantity with its name, its value and how it is written."""

import math
from collections.abc import Callable
from dataclasses import dataclass

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


def loss(value: float) -> str:
    return f"{value:.4f}"


def count(value: float) -> str:
    return f"{value:,.0f}"


def perplexity(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.2f}"


def seconds(value: float) -> str:
    return f"{value:,.0f} s" if value >= 1000 else f"{value:.1f} s"


def memory(value: float) -> str:
    return f"{value / 2**30:.2f} GiB" if value >= 2**30 else f"{value / 2**20:.0f} MiB"


def ratio(value: float) -> str:
    return f"{value:.3f}×"


def _nats_per_byte(run: RunSummary, loss: float | None) -> float | None:
    return None if loss is None or run.data is None else loss * run.data.tokens_per_byte


def _exponential(loss: float | None) -> float | None:
    return None if loss is None else math.exp(min(loss, 700.0))  # 700: the largest that does not overflow


def _diverged(run: RunSummary, arm: ArmSummary) -> str:
    return "—" if arm.diverged_at is None else "diverged"


def _not_reached(run: RunSummary, arm: ArmSummary) -> str:
    return "—" if run.target is None or arm.steps_to_target is not None else "not reached"


FINAL_LOSS = Quantity("final validation loss", "final", lambda run, arm: arm.final_loss, loss, True, _diverged)

QUANTITIES = (
    FINAL_LOSS,
    Quantity("  perplexity", "perplexity", lambda run, arm: _exponential(arm.final_loss), perplexity),
    Quantity("  nats/byte", "nats/byte", lambda run, arm: _nats_per_byte(run, arm.final_loss), loss, True),
    Quantity("best validation loss", "best", lambda run, arm: arm.best_loss, loss, True),
    Quantity("  perplexity", None, lambda run, arm: _exponential(arm.best_loss), perplexity),
    Quantity("  nats/byte", None, lambda run, arm: _nats_per_byte(run, arm.best_loss), loss, True),
    Quantity("  at step", None, lambda run, arm: arm.best_step, count),
    Quantity("test loss", "test", lambda run, arm: arm.test_loss, loss, True),
    Quantity("steps to target", "steps to target", lambda run, arm: arm.steps_to_target, count, False, _not_reached),
    Quantity(
        "seconds to target", "time to target", lambda run, arm: arm.seconds_to_target, seconds, False, _not_reached
    ),
    Quantity("tokens/s", "tokens/s", lambda run, arm: arm.tokens_per_second, count),
    Quantity("step time / reference", "step time", lambda run, arm: arm.step_time_ratio, ratio),
    Quantity("peak memory", "memory", lambda run, arm: arm.peak_memory_bytes, memory),
)
