import csv
import itertools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from natattn.analysis import run_curves
from natattn.analysis.run_curves import _apart, _averaged, plot_curves
from natattn.errors import UserError

MakeRun = Callable[..., Path]
VERMILION = (0xA2, 0x3B, 0x00)
PALE_BLUE = (0x56, 0xB4, 0xE9)


def pixels(path: Path, color: tuple[int, int, int]) -> int:
    picture = np.round(imread(path)[:, :, :3] * 255).astype(int)
    return int((np.abs(picture - color).max(axis=2) <= 2).sum())


def rows(folder: Path, curve: str) -> list[dict[str, str]]:
    with open(folder / "curves.csv", newline="") as file:
        return [row for row in csv.DictReader(file) if row["curve"] == curve]


def test_both_arms_are_seen_where_they_agree(make_run: MakeRun) -> None:
    folder = make_run(advantage=0.0)
    path = plot_curves(folder)
    assert path == folder / "curves.png"
    assert pixels(path, VERMILION) > 500
    assert pixels(path, PALE_BLUE) > 500
    assert sorted(each.name for each in folder.iterdir()) == [
        "config.yaml", "curves.csv", "curves.png", "metrics.jsonl", "run.json",
    ]  # fmt: skip


def test_the_data_beside_the_picture(make_run: MakeRun) -> None:
    folder = make_run(steps=600, evaluations=12, advantage=0.05)
    plot_curves(folder)
    validation = rows(folder, "validation")
    assert [row["arm"] for row in validation] == ["standard"] * 13 + ["natural"] * 13
    difference = rows(folder, "difference")
    assert [int(row["step"]) for row in difference] == list(range(0, 601, 50))
    assert [float(row["nats_per_token"]) for row in difference[2:]] == pytest.approx([-0.05] * 11)
    assert len(rows(folder, "training_mean")) == 2 * 120


def test_one_arm_has_no_lower_panel(make_run: MakeRun) -> None:
    one, two = plot_curves(make_run("one", arms=("natural",))), plot_curves(make_run("two"))
    assert pixels(one, PALE_BLUE) == 0
    assert imread(one).shape[0] < imread(two).shape[0]
    assert rows(one.parent, "difference") == []


@pytest.mark.parametrize(
    "options",
    [
        {"diverged_at": 250},
        {"diverged_at": 1},
        {"stopped_at": 300},
        {"stopped_at": 0},
        {"steps": 2, "evaluations": 2},
        {"steps": 3000, "evaluations": 300},
        {"leaky": ["natural"], "label": "100$ of_x^{2"},
        {"arms": ("standard", "natural"), "reference": None},
        {"task": "vision"},
        {"task": "vision", "diverged_at": 250},
        {"task": "vision", "steps": 3000, "evaluations": 300, "leaky": ["natural"]},
        {"task": "multimodal", "stopped_at": 0},
        {"task": "multimodal", "arms": ("natural",)},
    ],
)
def test_runs_of_every_kind_can_be_drawn(make_run: MakeRun, options: dict[str, object]) -> None:
    height, width = imread(plot_curves(make_run(**options))).shape[:2]
    assert 300 < height < width < 2000


@pytest.mark.parametrize(
    ("task", "unit", "metric"), [("vision", "image", "accuracy"), ("multimodal", "pair", "image_to_text_recall_1")]
)
def test_other_tasks_have_a_panel_of_what_they_measure(make_run: MakeRun, task: str, unit: str, metric: str) -> None:
    picture, other = plot_curves(make_run("made", task=task)), plot_curves(make_run("language"))
    assert imread(picture).shape[0] > imread(other).shape[0]
    measured = rows(picture.parent, f"validation_{metric}")
    assert [row["arm"] for row in measured] == ["standard"] * 13 + ["natural"] * 13
    assert float(measured[12][metric]) == pytest.approx(0.872, abs=1e-3)
    assert {row[f"nats_per_{unit}"] for row in measured} == {""}
    assert float(rows(picture.parent, "difference")[-1][f"nats_per_{unit}"]) < 0
    assert (other.parent / "curves.csv").read_text().splitlines()[0] == "curve,arm,step,nats_per_token"


def test_labels_of_a_vision_run(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []
    monkeypatch.setattr(
        run_curves, "_label_right", lambda panel, labels, gap=0.0: written.extend(text for _, text, _ in labels)
    )
    plot_curves(make_run("whole", task="vision"))
    assert written == ["standard 1.1970", "natural 1.1830", "chance 2.303", "87.2 %", "87.7 %", "chance 11.0 %"]
    written.clear()
    plot_curves(make_run("diverged", task="vision", diverged_at=250))
    assert written == ["standard 1.1970", "chance 2.303", "87.2 %", "chance 11.0 %"]


def test_the_only_arm_diverged(make_run: MakeRun) -> None:
    path = plot_curves(make_run(arms=("natural",), diverged_at=30))
    assert pixels(path, VERMILION) > 20
    assert imread(path).shape[1] < 2000


def test_a_run_without_losses_is_an_error_of_one_line(make_run: MakeRun) -> None:
    folder = make_run()
    (folder / "metrics.jsonl").write_bytes(b"")
    with pytest.raises(UserError, match="no validation loss to draw yet"):
        plot_curves(folder)
    assert not (folder / "curves.png").exists()


@pytest.mark.parametrize("without", ["reference", "candidate", "data"])
def test_a_broken_description_is_an_error_of_one_line(make_run: MakeRun, without: str) -> None:
    folder = make_run()
    facts = json.loads((folder / "run.json").read_text())
    del facts[without]
    (folder / "run.json").write_text(json.dumps(facts))
    with pytest.raises(UserError, match=r"run\.json does not describe a run"):
        plot_curves(folder)


def test_averages_keep_the_mean_of_whole_groups() -> None:
    values = np.random.default_rng(0).standard_normal(1200)
    steps, means = _averaged(np.arange(1200), values)
    assert len(means) == 120
    assert means.mean() == pytest.approx(values.mean())
    assert means[7] == pytest.approx(values[70:80].mean())
    assert steps[7] == 74.5


def test_a_short_run_is_not_averaged() -> None:
    steps, means = _averaged(np.arange(1, 4), np.array([3.0, 1.0, 2.0]))
    assert (steps.tolist(), means.tolist()) == ([1, 2, 3], [3.0, 1.0, 2.0])


@pytest.mark.parametrize("heights", [[0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0], [0.2, 0.21, 0.9], [0.5]])
def test_labels_are_moved_apart_and_stay_inside(heights: list[float]) -> None:
    moved = _apart(heights, gap=0.1)
    assert all(later - earlier >= 0.1 - 1e-9 for earlier, later in itertools.pairwise(moved))
    assert max(moved) <= 1.0
    assert min(moved) >= 0.0
