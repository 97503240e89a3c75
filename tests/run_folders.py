"""Synthetic run folders: what the training code writes, without training."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from natattn.tracking import Record
from natattn.tracking.metrics_file import MetricsFile

MakeRun = Callable[..., Path]

RECALLS = ("image_to_text_recall_1", "image_to_text_recall_5", "text_to_image_recall_1", "text_to_image_recall_5")
# Of the losses of a language run, from 8.3 to 4.2 nats: they begin near chance too.
LOSS_SCALE = {"vision": 0.28, "multimodal": 0.64}
# {task: what run.json says otherwise than that of a language run}
TASK_FACTS: dict[str, dict[str, Any]] = {
    "language": {},
    "vision": {
        "task": "vision",
        "unit": "image",
        "images_per_step": 64,
        "data": {
            "name": "digits",
            "fingerprint": "d161750000000000ff",
            "classes": 10,
            "train_images": 1300,
            "validation_images": 270,
            "test_images": 227,
            "chance": {"loss": 2.3026, "accuracy": 0.11},
        },
    },
    "multimodal": {
        "task": "multimodal",
        "unit": "pair",
        "pairs_per_step": 64,
        "data": {
            "name": "digit_scenes",
            "fingerprint": "5ce9e500000000000f",
            "vocab_size": 64,
            "train_pairs": 4000,
            "validation_pairs": 400,
            "test_pairs": 400,
            "gallery": 200,
            "chance": {"loss": math.log(200), **dict(zip(RECALLS, (0.005, 0.025, 0.005, 0.025), strict=True))},
        },
    },
}


def curve(step: int, advantage: float) -> float:
    """A validation loss in nats/token that falls from 8.3 towards 4.2."""
    return 4.2 + 4.1 * math.exp(-step / 150) - advantage * min(1.0, step / 100)


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """Writes a run folder; the candidate's loss is lower by `advantage`, its steps slower by 2 %."""

    def make(
        folder: str = "run",
        *,
        arms: tuple[str, ...] = ("standard", "natural"),
        steps: int = 600,
        evaluations: int = 12,
        advantage: float = 0.05,
        noise: float = 0.3,
        diverged_at: int | None = None,
        stopped_at: int | None = None,
        config: dict[str, Any] | None = None,
        process_memory: bool = True,
        task: str = "language",
        **facts: Any,
    ) -> Path:
        path = tmp_path / folder
        last = steps if stopped_at is None else stopped_at
        status = "finished" if stopped_at is None else "interrupted"
        described = {arm: describe(arm, status) for arm in arms}
        if diverged_at is not None:
            described[arms[-1]] |= {"status": "diverged", "cause": f"train loss is nan at step {diverged_at}"}
        content = run_facts(arms, described, steps, status)
        if task != "language":
            del content["tokens_per_step"]
        content |= TASK_FACTS[task] | facts
        path.mkdir(parents=True)
        (path / "run.json").write_text(json.dumps(content), encoding="utf-8")
        default = {"seed": content["seed"], "model": {"name": "natural"}, "train": {"steps": steps, "log_every": 10}}
        (path / "config.yaml").write_text(yaml.safe_dump(default | (config or {})), encoding="utf-8")
        every = max(1, steps // evaluations)
        with MetricsFile(path / "metrics.jsonl") as file:
            for step in range(last + 1):
                for arm in arms:
                    diverged = diverged_at if arm == arms[-1] else None
                    found = records(arm, step, every, last, advantage, noise, diverged, content["seed"])
                    file.log(found if task == "language" else task_records(task, found, last))
            if process_memory:
                file.log([Record(last, None, "time/peak_memory_bytes", 1.5 * 2**30, 60.0)])
        return path

    return make


def describe(arm: str, status: str) -> dict[str, Any]:
    optim = "aif" if arm == "natural" else "adamw"
    return {"optim": optim, "model": arm, "parameters": 1_000_000, "status": status, "cause": None}


def run_facts(arms: tuple[str, ...], described: dict[str, Any], steps: int, status: str) -> dict[str, Any]:
    return {
        "reference": arms[0] if len(arms) > 1 else None,
        "candidate": arms[-1],
        "arms": described,
        "status": status,
        "steps": steps,
        "tokens_per_step": 1024,
        "seed": 0,
        "config_hash": "0123456789abcdef",
        "identical": False,
        "data": {
            "name": "stdlib",
            "fingerprint": "feedfacecafebeef00",
            "vocab_size": 4096,
            "validation_tokens": 100_000,
            "validation_bytes": 400_000,
            "unigram_entropy": 6.9,
            "held_out_bigram_entropy": 4.8,
            "plug_in_bigram_entropy": 2.6,
            "floor": None,
        },
        "device": "cpu",
        "label": "natural · aif · nano",
        "leaky": [],
    }


def records(
    arm: str, step: int, every: int, last: int, advantage: float, noise: float, diverged_at: int | None, seed: int
) -> list[Record]:
    if diverged_at is not None and step > diverged_at:
        return []
    candidate = arm == "natural"
    loss = curve(step, advantage * candidate) + 0.01 * seed
    wobble = noise * math.sin(step * 12.9898 + seed) * math.cos(step * 78.233)
    found = [Record(step, arm, "train/loss", loss + wobble, 0.1 * step)] if step else []
    if step == diverged_at:
        return [Record(step, arm, "train/loss", math.nan, 0.1 * step), Record(step, arm, "diverged", step, 0.1 * step)]
    if step % every == 0 or step == last:
        found.append(Record(step, arm, "validation/loss", loss, 0.1 * step))
        found.append(Record(step, arm, "time/train_seconds", step * (0.0408 if candidate else 0.04), 0.1 * step))
    return found


def task_records(task: str, found: list[Record], last: int) -> list[Record]:
    """The records of a language run as a task has them: losses to its scale, and what it measures beside them.

    An accuracy is 0.47 where the loss was 8.3 nats, and 0.88 where it was 4.2; in the test it is 0.02 less.
    """
    measured = []
    for record in found:
        if not record.name.endswith("/loss"):
            measured.append(record)
            continue
        measured.append(record._replace(value=LOSS_SCALE[task] * record.value))
        if record.name != "validation/loss":
            continue
        share = 1.30 - 0.1 * record.value
        names = {"vision": ("accuracy",), "multimodal": RECALLS}[task]
        values = {name: share + 0.01 * place for place, name in enumerate(names)}
        values |= {"calibration_error": 0.02 + (1 - share) / 4} if task == "vision" else {}
        splits = {"validation": 0.0, "test": 0.02} if record.step == last else {"validation": 0.0}
        for split, worse in splits.items():
            measured += [record._replace(name=f"{split}/{name}", value=value - worse) for name, value in values.items()]
        if record.step == last:
            measured.append(record._replace(name="test/loss", value=LOSS_SCALE[task] * record.value + 0.2))
    return measured
