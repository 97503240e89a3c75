"""The numbers of a run, and the table that it is shown as."""

import io
import math
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from shown_tables import cells, report, text_of

from natattn.analysis.facts import number
from natattn.analysis.quantities import points
from natattn.analysis.runs import summarise_run
from natattn.analysis.summary import print_report, run_table
from natattn.errors import UserError
from natattn.tracking import Record
from natattn.tracking.metrics_file import MetricsFile

MakeRun = Callable[..., Path]


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
    assert "its losses are no evidence" in " ".join(text.split())
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


def test_a_number_beyond_floating_point_is_none() -> None:
    assert number(2**64) == 2.0**64
    for value in (10**400, float("nan"), -float("inf"), True, "1"):
        with pytest.raises(ValueError, match="is not a number"):
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


def test_a_run_without_a_readable_configuration_is_still_shown(make_run: MakeRun) -> None:
    folder = make_run()
    (folder / "config.yaml").write_text("{")
    assert summarise_run(folder).config is None
    assert "validation loss" in report(folder)


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
