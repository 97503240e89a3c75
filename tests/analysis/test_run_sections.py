"""`natattn analyze runs=…` by running it: synthetic runs with known differences, and trained models of some widths."""

import json
import math

import numpy as np
import pytest
from rendered import sections

from natattn.analysis.bands import band, difference_band, series
from natattn.analysis.run_set import load_runs, pairs
from natattn.analysis.settings import AnalyzeSettings
from natattn.cli.main import main
from natattn.config.compose import compose, plain_values, quote_paths, validated

FAST = ["text.sequences=4", "text.batch_size=2", "text.context=8", "temperatures.count=5", "device=cpu"]


def settings(*arguments: str) -> AnalyzeSettings:
    composed = compose(quote_paths(list(arguments)), "analyze")
    return validated(plain_values(composed), AnalyzeSettings)


def column(table: dict, name: str) -> list:
    return [row[table["headings"].index(name)] for row in table["rows"]]


@pytest.fixture
def seeds(make_run, tmp_path):
    """Five seeds of one experiment: natural is 0.05 nats/token below standard, give or take a little by seed."""
    for seed in range(5):
        make_run(f"study/seed{seed}", seed=seed, advantage=0.05 + 0.002 * (seed - 2), initial_weights_hash=f"w{seed}")
    return tmp_path / "study"


def test_arms_are_compared_within_their_run(seeds, tmp_path, capsys):
    assert main(["analyze", f"runs={seeds}", f"output={tmp_path}/page"]) == 0
    assert f"analysis: {tmp_path}/page/analysis.html" in capsys.readouterr().out
    found = sections(tmp_path / "page")
    assert list(found) == ["curves", "comparison"]  # attention was not observed
    final = found["comparison"]["tables"][0]
    (row,) = final["rows"]
    assert dict(zip(final["headings"], row, strict=True)) == {
        "final loss, nats/token": "natural", "minus": "standard", "pairs": 5, "mean": pytest.approx(-0.05),
        "95 % interval": "[−0.0539, −0.0461]", "p": pytest.approx(3.8196e-6, rel=1e-3), "p of sign flips": None,
        "says": "below",
    }  # fmt: skip
    assert any(
        "natural − standard: −0.05 nats/token [−0.0539, −0.0461], 5 pairs" in f for f in found["comparison"]["findings"]
    )
    times = next(table for table in found["comparison"]["tables"] if table["headings"][0].startswith("step time"))
    assert column(times, "mean")[0] == pytest.approx(math.log(1.02), abs=1e-6)
    for picture in found["curves"]["pictures"]:
        assert (tmp_path / "page" / "figures" / f"{picture['name']}.png").read_bytes().startswith(b"\x89PNG")


def test_runs_that_differ_in_a_setting_are_compared_if_they_share_seed_and_weights(make_run, tmp_path):
    for name, advantage in {"muon": 0.0, "natural_muon": 0.04}.items():
        for seed in range(6):
            make_run(
                f"study/{name}{seed}", arms=("natural",), seed=seed, advantage=advantage,
                initial_weights_hash=f"w{seed}" if (name, seed) != ("muon", 5) else "other",
                config={"seed": seed, "optim": {"name": name}},
            )  # fmt: skip
    chosen = load_runs(settings(f"runs={tmp_path}/study", "baseline=optim.name=muon"))
    labels = [treatment.label for treatment in chosen.treatments]
    assert labels == ["optim.name=muon", "optim.name=natural_muon"]
    assert [base and base.label for base in chosen.baselines] == [None, "optim.name=muon"]
    assert len(pairs(chosen.treatments[1], chosen.treatments[0])) == 5  # the sixth began from other weights
    difference = difference_band(chosen.treatments[1], chosen.treatments[0], "validation/loss")
    assert difference.seeds == 5
    assert difference.mean[-1] == pytest.approx(-0.04)
    assert difference.low[-1] == pytest.approx(-0.04)
    assert main(["analyze", f"runs={tmp_path}/study", f"output={tmp_path}/page"]) == 0
    (row,) = sections(tmp_path / "page")["comparison"]["tables"][0]["rows"]
    assert row[-1] == "inconclusive, incomplete"  # the sixth has no partner


def test_bands_are_means_over_seeds_at_common_steps(make_run, tmp_path):
    for seed in range(3):
        make_run(f"study/{seed}", arms=("natural",), seed=seed, evaluations=12 if seed else 6, noise=0.0)
    (treatment,) = load_runs(settings(f"runs={tmp_path}/study")).treatments
    found = band(treatment, "validation/loss")
    assert found.seeds == 3
    assert list(found.steps) == [0, 100, 200, 300, 400, 500, 600]
    curves = np.stack(
        [series(*run, "validation/loss")[1][:: 1 if i == 0 else 2] for i, run in enumerate(treatment.runs)]
    )
    assert found.mean == pytest.approx(curves.mean(0))
    # 0, 0.01 and 0.02 above the curve by seed: a half-width of 4.303 · 0.01/√3.
    assert found.high - found.mean == pytest.approx(4.302653 * 0.01 / 3**0.5, rel=1e-5)
    training = band(treatment, "train/loss")
    assert len(training.steps) <= 100
    assert training.steps[-1] == 600
    assert np.isnan(band(load_runs(settings(f"runs={tmp_path}/study/0")).treatments[0], "validation/loss").low).all()


def head_grid(make_run, *, parameters=lambda width: 1000):
    """Valleys at N·d = 32 whatever context and entropy."""
    for floor in (0.5, 2.0):
        for context in (32, 64, 128):
            for width in (8, 16, 32, 64, 128):
                loss = floor + 0.1 * math.log(width / 32) ** 2
                folder = make_run(
                    f"grid/{floor}_{context}_{width}", arms=("natural",), steps=4, evaluations=1,
                    config={"size": {"context": context, "n_head": 2, "n_embd": width}, "floor": floor},
                )  # fmt: skip
                facts = json.loads((folder / "run.json").read_text())
                facts["arms"]["natural"]["parameters"] = parameters(width)
                facts["data"] |= {"floor": floor, "fingerprint": f"grammar {floor}"}
                (folder / "run.json").write_text(json.dumps(facts))
                lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
                for line in lines:
                    if line["name"] == "validation/loss":
                        line["value"] = loss
                (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_a_grid_of_heads(make_run, tmp_path):
    head_grid(make_run)
    assert main(["analyze", f"runs={tmp_path}/grid", f"output={tmp_path}/page", "sections=[scaling]"]) == 0
    found = sections(tmp_path / "page")["scaling"]
    optima = found["tables"][1]
    assert column(optima, "best N·d") == pytest.approx([32.0] * 6)
    assert any("the best is constant" in finding for finding in found["findings"])
    assert any("refuted" in finding for finding in found["findings"])


def test_models_of_several_widths(tiny, tmp_path):
    for width in (8, 16, 32):
        arguments = [f"size.n_embd={width}", "reference=none", f"hydra.run.dir={tmp_path}/study/width{width}"]
        assert main(["train", *tiny, *arguments]) == 0
    arguments = ["analyze", f"runs={tmp_path}/study", f"output={tmp_path}/page", *FAST]
    assert main(arguments) == 0
    page = sections(tmp_path / "page")
    assert list(page) == ["curves", "comparison", "training", "widths"]
    assert {row[0] for row in page["training"]["tables"][0]["rows"]} == {f"size.n_embd={w}" for w in (8, 16, 32)}
    scanned = [json.loads(scan.read_text()) for scan in (tmp_path / "page" / "scans").glob("*.json")]
    assert sum(len(scan["peaks"]) for scan in scanned) == 3 * 2 * 2 * 2 * 2  # models, scans, observables, layers, heads
    scans = sorted((tmp_path / "page" / "scans").glob("*.json"))
    assert len(scans) == 3
    times = [scan.stat().st_mtime_ns for scan in scans]
    (tmp_path / "page" / "analysis.json").unlink()
    assert main([*arguments, "sections=[widths]"]) == 0
    assert [scan.stat().st_mtime_ns for scan in scans] == times  # read, not made again


def test_two_arms_over_several_contexts_are_no_grid_but_no_error(make_run, tmp_path, capsys):
    for context in (16, 32, 64):
        for width in (8, 16, 32, 64):
            make_run(
                f"study/{context}_{width}", steps=4, evaluations=1,
                config={"size": {"context": context, "n_head": 2, "n_embd": width}},
            )  # fmt: skip
    assert main(["analyze", f"runs={tmp_path}/study", f"output={tmp_path}/page"]) == 0
    assert list(sections(tmp_path / "page")) == ["curves", "comparison"]
    capsys.readouterr()
    assert main(["analyze", f"runs={tmp_path}/study", f"output={tmp_path}/other", "sections=[scaling]"]) == 2
    assert "several models of context 16, 2 heads, N·d 8, seed 0" in capsys.readouterr().err


def test_runs_whose_attention_was_not_kept_are_left_out_of_its_section(tiny, make_run, tmp_path):
    """The better run has no attention in its metrics: it must not take the place of the one that has."""
    assert main(["train", *tiny, "reference=none", f"hydra.run.dir={tmp_path}/study/observed"]) == 0
    make_run("study/kept", arms=("natural",), advantage=5.0)
    assert main(["analyze", f"runs={tmp_path}/study", f"output={tmp_path}/page"]) == 0
    training = sections(tmp_path / "page")["training"]
    assert len({row[0] for row in training["tables"][0]["rows"]}) == 1
    assert training["pictures"]


WRONG = {
    "no such folder": (["runs=missing"], "missing"),
    "empty": (["runs="], "runs.0=: valid: have at least 1 character"),
    "none": (["runs=[]"], "runs"),
    "no such section": (["runs={runs}", "sections=curve"], "sections.0=curve: valid: 'heads', "),
    "no such arm": (["runs={runs}", "arm=other"], "arm=other: no run has it; valid: natural, standard"),
    "no such baseline": (["runs={runs}", "baseline=muon"], "baseline=muon: is part of no label"),
    "of one model": (["runs={runs}", "sections=[heads]"], "sections: heads is of one model"),
    "of several runs": (["run={runs}/seed0", "sections=[curves]"], "curves is of several runs; give runs="),
    "no attention": (["runs={runs}", "sections=[training]"], "have no attention in their metrics"),
    "one width": (["runs={runs}", "sections=[widths]"], "sections=[widths]"),
    "no grid": (["runs={runs}", "sections=[scaling]"], "sections=[scaling]"),
    "both": (["runs={runs}", "run={runs}/seed0"], "give one of them"),
}


@pytest.mark.parametrize(("arguments", "said"), WRONG.values(), ids=WRONG.keys())
def test_mistakes_are_one_line(arguments, said, seeds, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert main(["analyze", *(argument.format(runs=seeds) for argument in arguments)]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.strip().count("\n") == 0
    assert sorted(tmp_path.rglob("*")) == before


def test_models_of_different_sizes_are_no_grid(make_run, tmp_path, capsys):
    head_grid(make_run, parameters=lambda width: 1000 + width)
    assert main(["analyze", f"runs={tmp_path}/grid", "sections=[scaling]", f"output={tmp_path}/page"]) == 2
    assert "models of 1,008 to 1,128 parameters" in capsys.readouterr().err


def test_a_seed_whose_loss_did_not_move_is_counted_with_the_others(make_run, tmp_path):
    make_run("study/moved", arms=("natural",), seed=0)
    still = make_run("study/still", arms=("natural",), seed=1) / "metrics.jsonl"
    records = [json.loads(line) for line in still.read_text().splitlines()]
    still.write_text("".join(
        json.dumps(each | ({"value": 5.0} if each["name"] == "validation/loss" else {})) + "\n" for each in records
    ))  # fmt: skip
    assert main(["analyze", f"runs={tmp_path}/study", f"output={tmp_path}/page"]) == 0
    (steps,) = column(sections(tmp_path / "page")["curves"]["tables"][0], "steps to ¼, ½, ¾ of the fall")
    assert len(steps.split(", ")) == 3
