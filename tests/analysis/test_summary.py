import datetime
import io
import json
import math
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table

from natattn.analysis.facts import number
from natattn.analysis.groups import group_runs
from natattn.analysis.quantities import points
from natattn.analysis.runs import find_runs, summarise_run
from natattn.analysis.summary import print_report, run_table, sweep_table
from natattn.errors import UserError
from natattn.tracking import Record
from natattn.tracking.metrics_file import MetricsFile

MakeRun = Callable[..., Path]


def text_of(table: Table, width: int = 200) -> str:
    stream = io.StringIO()
    Console(file=stream, width=width).print(table)
    return stream.getvalue()


def report(*paths: Path | str) -> str:
    stream = io.StringIO()
    print_report([str(path) for path in paths], stream=stream)
    return stream.getvalue()


def row(text: str, title: str) -> list[str]:
    """The cells of the first row with that title: what stands after it."""
    found = next(line for line in text.splitlines() if line.strip().startswith(title))
    return found.strip().removeprefix(title).split("  ")


def cells(text: str, title: str) -> list[str]:
    return [cell.strip() for cell in row(text, title) if cell.strip()]


def append(folder: Path, *records: Record) -> None:
    with MetricsFile(folder / "metrics.jsonl") as file:
        file.log(records)


def test_the_numbers_of_a_run(make_run: MakeRun) -> None:
    run = summarise_run(make_run(steps=600, evaluations=12, advantage=0.05))
    standard, natural = run.arms
    target = 4.2 + 4.1 * math.exp(-4)
    assert (run.problem, run.reference, run.candidate, run.seed) == (None, "standard", "natural", 0)
    assert run.target == standard.final_loss == pytest.approx(target)
    assert natural.final_loss == pytest.approx(target - 0.05)
    assert (natural.best_loss, natural.best_step, natural.last_step) == (natural.final_loss, 600, 600)
    assert (standard.steps_to_target, natural.steps_to_target) == (600, 550)
    assert natural.seconds_to_target == pytest.approx(550 * 0.0408)
    assert natural.step_time_ratio == pytest.approx(1.02)
    assert standard.units_per_second == pytest.approx(1024 / 0.04)
    assert run.data is not None
    assert run.data.text.tokens_per_byte == 0.25
    assert natural.peak_memory_bytes is None
    assert run.process_peak_memory_bytes == 1.5 * 2**30


def test_the_best_loss_is_not_the_last(make_run: MakeRun) -> None:
    folder = make_run(steps=100, evaluations=4)
    append(folder, Record(125, "natural", "validation/loss", 9.0, 1.0), Record(125, "natural", "test/loss", 8.5, 1.0))
    natural = summarise_run(folder).arms[1]
    assert (natural.best_step, natural.final_loss, natural.test_loss) == (100, 9.0, 8.5)
    assert natural.best_loss is not None
    assert natural.best_loss < 9.0


def test_a_target_that_is_not_reached_is_censored(make_run: MakeRun) -> None:
    run = summarise_run(make_run(advantage=-0.05))
    assert (run.arms[1].steps_to_target, run.arms[1].seconds_to_target) == (None, None)
    text = text_of(run_table(run))
    assert cells(text, "steps to target") == ["600", "not reached"]
    assert cells(text, "seconds to target") == ["24.0 s", "not reached"]


def test_step_time_is_a_median(make_run: MakeRun) -> None:
    folder = make_run(steps=100, evaluations=10)
    append(folder, Record(110, "natural", "time/train_seconds", 1e6, 1.0))  # the machine slept
    assert summarise_run(folder).arms[1].step_seconds == pytest.approx(0.0408)


def test_peak_memory_of_each_arm(make_run: MakeRun) -> None:
    folder = make_run(process_memory=False)
    append(folder, *(Record(600, "natural", "time/peak_memory_bytes", size * 2**20, 1.0) for size in (700, 300)))
    text = text_of(run_table(summarise_run(folder)))
    assert cells(text, "peak memory") == ["—", "700 MiB"]
    assert "of the process" not in text


def test_the_table_of_a_run(make_run: MakeRun) -> None:
    text = text_of(run_table(summarise_run(make_run())))
    assert "natural · aif · nano · seed 0" in text
    assert cells(text, "nats/token") == ["standard", "natural", "difference"]
    assert cells(text, "status") == ["finished", "finished"]
    assert cells(text, "final validation loss") == ["4.2751", "4.2251", "-0.05000"]
    assert cells(text, "perplexity") == ["71.89", "68.38"]
    assert cells(text, "nats/byte") == ["1.0688", "1.0563", "-0.01250"]
    assert cells(text, "step time / reference") == ["1.000×", "1.020×"]
    assert cells(text, "below the bigram model") == ["yes", "yes"]
    assert "entropies: unigram 6.9000, bigram model 4.8000 (held out; plug-in entropy 2.6000)" in " ".join(text.split())
    assert "floor" not in text
    assert "test loss" not in text
    assert "peak memory of the process: 1.50 GiB" in text


def test_every_line_of_the_table_of_a_run_fits_80_columns(make_run: MakeRun) -> None:
    folder = make_run(diverged_at=250, leaky=["natural"], identical=True)
    text = text_of(run_table(summarise_run(folder)), width=80)
    assert "…" not in text
    assert cells(text, "status") == ["finished", "diverged at step 250"]


def test_a_diverged_arm(make_run: MakeRun) -> None:
    run = summarise_run(make_run(diverged_at=250))
    natural = run.arms[1]
    assert (natural.diverged_at, natural.final_loss, natural.steps_to_target, natural.best_step) == (
        250,
        None,
        None,
        200,
    )
    text = text_of(run_table(run))
    assert cells(text, "final validation loss") == ["4.2751", "diverged", "—"]
    assert cells(text, "best validation loss")[-1] == "—"
    assert cells(text, "steps to target") == ["600", "not reached"]
    assert "natural diverged: train loss is nan at step 250" in text


def test_one_arm_has_no_reference(make_run: MakeRun) -> None:
    text = text_of(run_table(summarise_run(make_run(arms=("natural",), stopped_at=300))))
    assert cells(text, "status") == ["interrupted at step 300"]
    for words in ("difference", "to target", "reference"):
        assert words not in text


def test_marks(make_run: MakeRun) -> None:
    data = {"name": "grammar", "fingerprint": "f", "validation_tokens": 8, "validation_bytes": 8}
    data |= {"unigram_entropy": 3.0, "held_out_bigram_entropy": 2.0, "plug_in_bigram_entropy": None, "floor": 1.25}
    text = text_of(run_table(summarise_run(make_run(leaky=["natural"], identical=True, data=data))))
    assert cells(text, "nats/token") == ["standard", "natural LEAKY", "difference"]
    assert "its losses are no evidence" in text
    assert "identical arms: updated alike" in text
    assert "bigram model 2.0000 (held out), floor 1.2500" in " ".join(text.split())
    assert cells(text, "below the bigram model") == ["no", "no"]


def test_missing_metrics_are_dashes(make_run: MakeRun) -> None:
    folder = make_run()
    (folder / "metrics.jsonl").write_bytes(b"")
    append(folder, Record(0, "standard", "validation/loss", 8.0, 0.0))
    text = text_of(run_table(summarise_run(folder)))
    assert cells(text, "final validation loss") == ["8.0000", "—", "—"]


def test_a_killed_run_is_read_to_its_last_whole_line(make_run: MakeRun) -> None:
    folder = make_run(stopped_at=300)
    with open(folder / "metrics.jsonl", "ab") as file:
        file.write(b'{"step": 301, "arm": "stan')
    assert summarise_run(folder).arms[0].last_step == 300


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
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

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


def test_a_number_beyond_floating_point_is_none() -> None:
    assert number(2**64) == 2.0**64
    for value in (10**400, float("nan"), -float("inf"), True, "1"):
        with pytest.raises(ValueError, match="is no number"):
            number(value)


def test_a_single_broken_run_is_one_line(make_run: MakeRun) -> None:
    folder = make_run()
    (folder / "run.json").unlink()
    stream = io.StringIO()
    with pytest.raises(UserError, match=r"no readable run in .* \(found 1, all broken\)"):
        print_report([str(folder)], stream=stream)
    assert stream.getvalue().splitlines() == [
        f"{folder}: broken: cannot read {folder / 'run.json'}: No such file or directory"
    ]


def test_broken_runs_alone_are_listed_and_then_an_error(make_run: MakeRun) -> None:
    for name in ("1", "2"):
        folder = make_run(f"s/{name}")
        (folder / "run.json").write_text("{")
    stream = io.StringIO()
    with pytest.raises(UserError, match="found 2, all broken"):
        print_report([str(folder.parent)], stream=stream)
    assert stream.getvalue().count(": broken: ") == 2


def test_a_run_without_a_readable_configuration_is_still_shown(make_run: MakeRun) -> None:
    folder = make_run()
    (folder / "config.yaml").write_text("{")
    assert summarise_run(folder).config is None
    assert "validation loss" in report(folder)


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


def test_the_table_of_a_vision_run(make_run: MakeRun) -> None:
    run = summarise_run(make_run(task="vision"))
    assert (run.problem, run.unit) == (None, "image")
    text = text_of(run_table(run))
    assert cells(text, "nats/image") == ["standard", "natural", "difference"]
    assert cells(text, "final validation loss") == ["1.1970", "1.1830", "-0.01400"]
    assert cells(text, "validation accuracy") == ["87.2 %", "87.7 %", "+0.5 points"]
    assert cells(text, "validation calibration error") == ["5.2 %", "5.1 %", "-0.1 points"]
    assert cells(text, "test loss") == ["1.3970", "1.3830", "-0.01400"]
    assert cells(text, "test accuracy") == ["85.2 %", "85.7 %", "+0.5 points"]
    assert cells(text, "images/s") == ["1,600", "1,569"]
    assert "data: digits (d16175000000)\n" in re.sub(" +\n", "\n", text)
    assert "chance: loss 2.3026, accuracy 11.0 %" in text
    for words in ("perplexity", "byte", "bigram", "token", "recall"):
        assert words not in text


def test_the_table_of_a_multimodal_run(make_run: MakeRun) -> None:
    text = text_of(run_table(summarise_run(make_run(task="multimodal"))), width=80)
    assert "…" not in text
    assert cells(text, "nats/pair") == ["standard", "natural", "difference"]
    assert cells(text, "validation image → text recall@1") == ["87.2 %", "87.7 %", "+0.5 points"]
    assert cells(text, "test text → image recall@5") == ["88.2 %", "88.7 %", "+0.5 points"]
    assert cells(text, "pairs/s") == ["1,600", "1,569"]
    assert "chance: loss 5.2983, image → text recall@1 0.5 %" in " ".join(text.split())
    for words in ("perplexity", "byte", "bigram", "token", "accuracy"):
        assert words not in text


def test_a_diverged_arm_of_vision_has_no_accuracy(make_run: MakeRun) -> None:
    text = text_of(run_table(summarise_run(make_run(task="vision", diverged_at=250))))
    assert cells(text, "final validation loss") == ["1.1970", "diverged", "—"]
    assert cells(text, "validation accuracy") == ["87.2 %", "—", "—"]


@pytest.mark.parametrize(("difference", "written"), [(0.0123, "+1.2"), (-0.5, "-50.0"), (-0.0004, "+0.0")])
def test_differences_of_shares_are_in_points(difference: float, written: str) -> None:
    assert points(difference) == written


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
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for seed in range(3):
        folder = make_run(f"sweep/{seed}", task="vision", seed=seed, advantage=0.05 + 0.02 * seed)
    monkeypatch.setenv("COLUMNS", "100")
    terminal = Terminal()
    print_report([str(folder.parent)], stream=terminal)
    text = re.sub(r"\x1b\[[0-9;]*m", "", terminal.getvalue())
    assert cells(text, "validation accuracy") == ["87.1 % ± 0.1 %", "87.8 % ± 0.1 %", "+0.7 ± 0.2 points"]
