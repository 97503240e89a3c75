"""Several runs: which are found, which belong together, and the tables of their groups."""

import datetime
import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from shown_tables import Terminal, cells, report, text_of

from natattn.analysis.groups import group_runs
from natattn.analysis.runs import find_runs, summarise_run
from natattn.analysis.summary import print_report, run_table, sweep_table
from natattn.errors import UserError

MakeRun = Callable[..., Path]


@pytest.fixture
def sweep(make_run: MakeRun, tmp_path: Path) -> Path:
    """Two optimizers with three seeds each; the last run of the second diverged."""
    for seed in range(3):
        for optim in ("adamw", "aif"):
            make_run(
                f"sweep/{seed}_{optim}",
                seed=seed,
                label=f"natural · {optim} · nano",
                config={"seed": seed, "optim": {"name": optim}, "tracker": {"kind": f"kind{seed}"}},
                advantage=0.05 + 0.01 * seed,
                diverged_at=200 if (optim, seed) == ("aif", 2) else None,
                steps=100 if optim == "adamw" else 300,
                evaluations=4,
            )
    return tmp_path / "sweep"


def test_a_sweep_is_grouped_by_all_but_the_seed(sweep: Path) -> None:
    runs = [summarise_run(folder) for folder in find_runs([sweep])]
    groups, left_out = group_runs(runs)
    assert left_out == []
    assert [(group.label, len(group.runs)) for group in groups] == [
        ("natural · adamw · nano", 3),
        ("natural · aif · nano", 3),
    ]
    text = text_of(sweep_table(groups))
    lines = [line.split() for line in text.splitlines()]
    adamw = lines.index(next(line for line in lines if "adamw" in line))
    # The arms: label, row of means, row of spreads, the candidate's two.
    assert lines[adamw][5:8] == ["standard", "3", "6.3150"]
    assert lines[adamw + 1][:2] == ["±", "0.0100"]
    assert lines[adamw + 2][:4] == ["natural", "3", "6.2550", "-0.06000"]
    assert lines[adamw + 3][2:4] == ["±", "0.01000"]
    assert "2 of 3" in text
    assert "1 diverged" in text
    assert "2 finished" in text


def test_a_wide_report_holds_one_table_and_a_narrow_terminal_one_for_each_group(
    sweep: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert report(sweep).count("below the bigram model") == 0
    assert report(sweep).count("2 of 3") > 0
    monkeypatch.setenv("COLUMNS", "100")
    terminal = Terminal()
    print_report([str(sweep)], stream=terminal)
    assert terminal.getvalue().count("below the bigram model") == 2
    assert "6.3150 ± 0.0100" in terminal.getvalue()


def test_runs_that_differ_in_unnamed_keys_are_told_apart(make_run: MakeRun) -> None:
    for rate in (0.1, 0.01):
        make_run(f"sweep/{rate}", config={"optim": {"learning_rate": rate}, "train": {"log_every": rate}})
    text = report(make_run("sweep/x", config={"optim": {"learning_rate": 1.0}}).parent)
    for written in ("0.1", "0.01", "1.0"):
        assert f"optim.learning_rate={written}" in " ".join(text.split())
    assert "log_every" not in text


def test_other_data_is_never_pooled(make_run: MakeRun) -> None:
    first = make_run("a", seed=0)
    facts = json.loads((first / "run.json").read_text())
    second = make_run("b", seed=1, data=facts["data"] | {"fingerprint": "another", "name": "wikitext2"})
    text = report(first, second)
    assert "2 different data sets: their losses do not compare, and are not pooled" in text
    assert "data: stdlib (feedfacecafe)" in text
    assert "data: wikitext2 (another)" in text
    assert "±" not in text


def test_the_same_seed_twice_counts_once(make_run: MakeRun) -> None:
    text = report(make_run("a", seed=3), make_run("b", seed=3), make_run("c", seed=4))
    assert "repeated as" in text
    groups, left_out = group_runs([summarise_run(folder) for folder in find_runs([make_run("d").parent])])
    assert [run.folder.name for run in groups[0].runs] == ["b", "c", "d"]
    assert len(left_out) == 1


def test_broken_and_unfinished_runs_are_listed(make_run: MakeRun) -> None:
    make_run("s/1")
    make_run("s/2", stopped_at=100)
    for name, content in (("3", "{"), ("4", "[]"), ("5", '{"arms": {}}')):
        (make_run(f"s/{name}") / "run.json").write_text(content)
    (make_run("s/6") / "run.json").unlink()
    (make_run("s/7") / "metrics.jsonl").write_text("garbage\n{}\n")
    (make_run("s/8") / "metrics.jsonl").unlink()
    make_run("s/9", arms=("natural",), data=None)
    make_run("s/10", status="running", stopped_at=10)
    folder = make_run("s/11")
    (folder / "config.yaml").write_text("{")
    text = report(folder.parent)
    for words in (
        f"{folder.parent / '2'}: interrupted at step 100 of 600: not counted",
        f"{folder.parent / '3'}: broken: ",
        "is not a JSON object",
        "no key 'reference'",
        "run.json: No such file",
        "metrics.jsonl:1: not a metrics record",
        "metrics.jsonl: No such file",
        f"{folder.parent / '9'}: broken: ",
        f"{folder.parent / '10'}: running at step 10 of 600: not counted",
    ):
        assert words in text


def test_broken_runs_alone_are_listed_and_then_an_error(make_run: MakeRun) -> None:
    for name in ("1", "2"):
        folder = make_run(f"s/{name}")
        (folder / "run.json").write_text("{")
    stream = io.StringIO()
    with pytest.raises(UserError, match="found 2, all broken"):
        print_report([str(folder.parent)], stream=stream)
    assert stream.getvalue().count(": broken: ") == 2


def test_configurations_are_compared_whatever_yaml_makes_of_them(make_run: MakeRun) -> None:
    odd = {"data": {"paths": ["a", "b"], "since": datetime.date(2026, 1, 1), 1: True}}
    folders = [make_run("s/1", seed=0, config=odd), make_run("s/2", seed=1, config=odd)]
    (group,), left_out = group_runs([summarise_run(folder) for folder in folders])
    assert (len(group.runs), left_out) == (2, [])


def test_runs_are_found_in_folders_sweeps_and_patterns(make_run: MakeRun, tmp_path: Path) -> None:
    runs = [make_run(f"sweep/{index}_x") for index in (0, 2, 10)]
    other = make_run("other")
    (other / "checkpoints" / "best").mkdir(parents=True)
    (other / "checkpoints" / "best" / "config.yaml").touch()
    (tmp_path / "sweep" / ".hydra").mkdir()
    (tmp_path / "sweep" / ".hydra" / "config.yaml").touch()
    assert find_runs([tmp_path / "sweep"]) == runs
    assert find_runs([tmp_path]) == [other, *runs]
    assert find_runs([f"{tmp_path}/sweep/*_x", runs[0]]) == runs
    assert find_runs([other]) == [other]
    make_run("sweep/1²")  # a digit that is no number
    assert len(find_runs([tmp_path / "sweep"])) == 4


@pytest.mark.parametrize("path", ["nowhere", "no*where", "."])
def test_no_run_is_an_error_of_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="no run in"):
        find_runs([path])


def test_a_sweep_of_every_task_has_a_table_for_each(make_run: MakeRun, tmp_path: Path) -> None:
    for task in ("language", "vision", "multimodal"):
        for seed in range(3):
            make_run(f"sweep/{task}_{seed}", task=task, seed=seed, advantage=0.05 + 0.02 * seed)
    text = report(tmp_path / "sweep")
    assert "3 different data sets: their losses do not compare, and are not pooled" in text
    language, multimodal, vision = re.split(r"\n *\n(?=\S* *(?:arm|validation) )", text.split("pooled\n\n")[1])
    assert "< bigram" in language
    assert "nats/byte" in language
    for words in ("chance", "recall", "accuracy"):
        assert words not in language
    assert vision.count("accuracy") == 3  # of both splits, and chance
    assert multimodal.count("recall@1") == 6
    for table, unit in ((vision, "images/s"), (multimodal, "pairs/s")):
        assert unit in table
        assert "87.1 %" in table
        assert "± 0.1 %" in table
        assert "bigram" not in table
        assert "perplexity" not in table
    one_group = text_of(run_table(summarise_run(tmp_path / "sweep" / "vision_0")), width=200)
    assert "±" not in one_group


def test_a_group_of_vision_runs_has_the_spread_of_its_differences(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in range(3):
        folder = make_run(f"sweep/{seed}", task="vision", seed=seed, advantage=0.05 + 0.02 * seed)
    monkeypatch.setenv("COLUMNS", "100")
    terminal = Terminal()
    print_report([str(folder.parent)], stream=terminal)
    text = re.sub(r"\x1b\[[0-9;]*m", "", terminal.getvalue())
    assert cells(text, "validation accuracy") == ["87.1 % ± 0.1 %", "87.8 % ± 0.1 %", "+0.7 ± 0.2 points"]
