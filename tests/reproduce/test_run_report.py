"""`natattn report`: the page that it writes beside the table."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote

import pytest
from report_results import data_of, written

from natattn.cli.main import main

MakeRun = Callable[..., Path]


@pytest.fixture
def sweep(make_run: MakeRun, tmp_path: Path) -> Path:
    """Three seeds of two optimizers on one data set, a leaky run on another, and one that was interrupted."""
    for seed in range(3):
        for optim in ("adamw", "aif"):
            make_run(
                f"sweep/{seed}_{optim}", seed=seed, label=f"natural · {optim} · nano", steps=100, evaluations=10,
                config={"seed": seed, "optim": {"name": optim}}, advantage=0.05 + 0.01 * seed,
                diverged_at=50 if (optim, seed) == ("aif", 2) else None,
            )  # fmt: skip
    facts = json.loads((tmp_path / "sweep" / "0_aif" / "run.json").read_text())
    make_run(
        "sweep/other", steps=100, leaky=["natural"], data=facts["data"] | {"fingerprint": "another", "name": "pages"}
    )
    make_run("sweep/stopped", stopped_at=50, seed=9)
    return tmp_path / "sweep"


def test_report_prints_the_table_and_writes_the_page(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(sweep)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == f"report: {sweep}/report.html"
    assert any("2 of 3" in line for line in lines)
    text = (sweep / "report.html").read_text("utf-8")
    tables = re.findall(r"<h3>(.*?)</h3>.*?(<table.*?</table>)", text, re.DOTALL)
    assert [title for title, _ in tables] == ["stdlib", "pages", "Every run"]
    rows = [re.findall(r"<td.*?>(.*?)</td>", row) for row in re.findall(r"<tr>(.*?)</tr>", tables[0][1], re.DOTALL)][1:]
    assert [row[:3] for row in rows] == [
        ["natural · adamw · nano", "standard", "3"],
        ["natural · adamw · nano", "natural", "3"],
        ["natural · aif · nano", "standard", "3"],
        ["natural · aif · nano", "natural", "3"],
    ]
    # The mean of −0.05, −0.06 and −0.07, and its t interval: 4.303 · 0.01 / √3.
    assert rows[1][4] == "−0.060 [−0.085, −0.035]"
    assert rows[3][3].endswith("(2 of 3)")
    assert "2 finished, 1 diverged" in rows[3]
    assert "natural LEAKY" in tables[1][1]
    assert "stopped" in tables[2][1]
    assert "finished, natural LEAKY" in tables[2][1]
    assert "interrupted at step 50 of 600: not counted" in text
    assert text.count("data:image/png") == 2
    assert len(data_of(sweep / "report.html")) == 8


def test_report_of_a_broken_run_writes_no_page(make_run: MakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run()
    (run / "run.json").unlink()
    assert main(["report", str(run)]) == 2
    assert not (run / "report.html").exists()
    assert "all broken" in capsys.readouterr().err


@pytest.mark.parametrize("outputs", [True, False])
def test_report_of_several_folders_goes_to_the_outputs(
    make_run: MakeRun,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    outputs: bool,
) -> None:
    runs = [make_run("a=1", steps=10, evaluations=2), make_run("b", steps=10, evaluations=2, seed=1)]
    monkeypatch.chdir(tmp_path)
    if outputs:
        (tmp_path / "outputs").mkdir()
    place = Path("outputs/report.html" if outputs else "report.html")
    for arguments in (["a=1", "b"], ["*"]):
        assert main(["report", *arguments]) == 0
        assert capsys.readouterr().out.splitlines()[-1] == f"report: {place}"
        links = [link for link in written(place).links() if not link.startswith("#")]
        assert {(place.parent / unquote(link)).resolve() for link in links} == set(runs)
        place.unlink()
    assert main(["report", "b", "output=mine.html"]) == 0
    assert (tmp_path / "mine.html").is_file()
    assert not (tmp_path / "b" / "report.html").exists()


def test_report_goes_to_outputs_by_default(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run("outputs/run", steps=10, evaluations=2)
    monkeypatch.chdir(tmp_path)
    assert main(["report"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "report: outputs/report.html"


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("outptu=x.html", "did you mean output?"),
        ("output=", "output=: valid"),
        ("output=no/x.html", "no/x.html: cannot"),
    ],
)
def test_a_wrong_key_of_report_is_one_line(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], argument: str, said: str
) -> None:
    run = make_run(steps=10, evaluations=2)
    monkeypatch.chdir(run.parent)
    assert main(["report", str(run), argument]) == 2
    captured = capsys.readouterr()
    assert said in captured.err
    assert captured.err.count("\n") == 1
    assert ("final validation loss" in captured.out) == ("no/" in argument), (
        "a page that cannot be written takes no table"
    )


def test_help_of_report_names_the_key(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "--help"]) == 0
    assert "output=FILE" in capsys.readouterr().out


def test_report_of_every_task(make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for task in ("language", "vision", "multimodal"):
        for seed in range(3):
            make_run(f"sweep/{task}_{seed}", task=task, seed=seed, steps=100, evaluations=10)
    (make_run("sweep/zz_broken") / "run.json").unlink()
    assert main(["report", str(tmp_path / "sweep")]) == 0
    page = tmp_path / "sweep" / "report.html"
    text = page.read_text("utf-8")
    tables = dict(re.findall(r"<h3>(.*?)</h3>.*?(<table.*?</table>)", text, re.DOTALL))
    headings = {title: re.findall(r"<th.*?>(.*?)</th>", table) for title, table in tables.items()}
    assert "below the bigram model" in headings["stdlib"]
    assert "perplexity" in headings["stdlib"]
    for title, unit, names in (
        ("digits", "image", ["validation accuracy", "test accuracy", "test calibration error"]),
        ("digit_scenes", "pair", ["validation image → text recall@1", "test text → image recall@5"]),
    ):
        found = headings[title]
        assert found[3:5] == [f"final validation loss, nats/{unit}", f"difference, nats/{unit}"]
        assert f"{unit}s/s" in found
        assert set(names) <= set(found)
        assert not {"perplexity", "nats/byte", "below the bigram model"} & set(found)
    (last,) = (each for each in headings["Every run"] if each.startswith("candidate"))
    assert set(last.split(", ")[1].split(" or ")) == {"nats/pair", "nats/token", "nats/image"}
    assert "chance: loss 2.3026, accuracy 11.0 %" in text
    views = {view["label"].split(" · ")[0]: view for view in data_of(page)}
    assert views["vision_0"]["unit"] == "image"
    assert views["vision_0"]["per_byte"] is None
    assert views["vision_0"]["arms"][1]["metrics"]["test accuracy"] == pytest.approx(0.655, abs=0.01)
    assert views["language_0"]["arms"][1]["metrics"] == {}
    assert views["language_0"]["per_byte"] == 0.25


def test_a_page_of_vision_runs_says_nothing_of_tokens(
    make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run("sweep/whole", task="vision", steps=100, evaluations=10)
    (make_run("sweep/broken", task="vision") / "run.json").unlink()
    assert main(["report", str(tmp_path / "sweep")]) == 0
    text = (tmp_path / "sweep" / "report.html").read_text("utf-8")
    assert "nats/token" not in text
    assert "bigram" not in text
    assert "token" not in capsys.readouterr().out
