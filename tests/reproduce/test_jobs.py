"""Jobs named by what they compute, and runs found again by it."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hydra.core.utils import JobReturn, JobStatus

from natattn.analysis.kept_runs import RECORD, kept_runs
from natattn.analysis.runs import read_facts, read_run_config
from natattn.config.compose import quote_paths
from natattn.errors import UserError
from natattn.reproduce.jobs import DoneRuns, Job, JobMaker, file_overrides, job_key, key_of, repeated_lines
from natattn.reproduce.runner import _failures, _train, bundled, launch
from natattn.reproduce.study import CorpusSettings, Repeats
from natattn.tracking.metrics_file import read_metrics
from natattn.training.run_folder import RUN, RunLock
from natattn.training.settings import compose_run

TINY = (
    "model=natural", "reference=none", "size=pico", "size.n_embd=16", "size.n_head=2", "size.n_layer=1",
    "size.context=16", "tokenizer=byte", "optim=adamw", "train.steps=4", "train.evaluate_every=2", "train.batch_size=2",
)  # fmt: skip
LINES = CorpusSettings.model_validate(
    {
        "overrides": ["data=text"],
        "files": {
            "train": {"lines": 200, "length": 8, "seed": 1},
            "validation": {"lines": 20, "length": 8, "seed": 2},
        },
    }
)


def test_repeated_lines_say_everything_twice_and_the_same_for_a_seed():
    made = repeated_lines(Repeats(lines=50, length=8, seed=3))
    lines = made.splitlines()
    assert len(lines) == 50
    assert all(line[:8] == line[8:] and len(line) == 16 for line in lines)
    assert made == repeated_lines(Repeats(lines=50, length=8, seed=3))
    assert made != repeated_lines(Repeats(lines=50, length=8, seed=4))


def test_a_key_says_what_is_computed_and_not_where(tmp_path: Path):
    here, there = JobMaker(tmp_path / "here", None), JobMaker(tmp_path / "there", None)
    base = here.job(LINES, [*TINY, *LINES.overrides, "seed=1"])
    assert isinstance(base, Job)
    same = there.job(LINES, [*TINY, *LINES.overrides, "seed=1", "train.keep_checkpoints=5"])
    assert isinstance(same, Job)
    assert same.key == base.key
    for changed in ("seed=2", "train.steps=5", "optim.learning_rate=0.5", "size.n_layer=2"):
        other = here.job(LINES, [*TINY, *LINES.overrides, "seed=1", changed])
        assert isinstance(other, Job)
        assert other.key != base.key, changed
    text = LINES.model_copy(update={"files": {**LINES.files, "validation": Repeats(lines=20, length=8, seed=9)}})
    other_text = here.job(text, [*TINY, *LINES.overrides, "seed=1"])
    assert isinstance(other_text, Job)
    assert other_text.key != base.key


def test_a_text_that_is_not_the_studys_is_refused_and_one_that_is_not_given_leaves_the_key(tmp_path: Path):
    maker = JobMaker(tmp_path, None)
    other = LINES.model_copy(update={"fingerprint": "0" * 64})
    with pytest.raises(UserError, match="Use the study's text"):
        maker.job(other, [*TINY, *LINES.overrides])
    corpus = CorpusSettings.model_validate(
        {"overrides": ["data=text"], "files": {"train": {"of": "valid.txt"}}, "fingerprint": "0" * 64}
    )
    assert isinstance(maker.job(corpus, [*TINY, "data=text"]), str)
    with pytest.raises(UserError, match=r"valid\.txt cannot be read"):
        JobMaker(tmp_path, str(tmp_path / "nowhere")).job(corpus, [*TINY, "data=text"])


def test_a_job_composes_to_what_natattn_train_composes(tmp_path: Path):
    """Only options go through Hydra; single values are set in a copy of what it returned."""
    maker = JobMaker(tmp_path, None)
    base = [*TINY, "data=stdlib"]
    for added in (
        ["seed=3", "optim=muon", "++optim.learning_rates.hidden=0.01"],
        ["packing=lines", "size.context=24"],
        ["optim=fisher_muon", "optim.placebo=shuffled", "train.max_seconds=1e3"],
        ["tracker=off", "optim.directions.default.betas=[0.8,0.9]"],
    ):
        overrides = [*base, *added]
        assert maker.compose(overrides) == compose_run(quote_paths(overrides))
    for wrong in ("sead=3", "train.steps=many", "optim=nobody"):
        with pytest.raises(UserError) as theirs:
            compose_run([*base, wrong])
        with pytest.raises(UserError) as mine:
            maker.compose([*base, wrong])
        assert str(mine.value) == str(theirs.value)


def test_published_runs_are_found_by_their_key_and_only_with_what_is_wanted_of_them():
    kept = Path(__file__).parents[2] / "docs" / "results" / RECORD
    folder = kept_runs(kept)[0]
    key = key_of(folder)
    facts = read_facts(folder)
    assert key == job_key(read_run_config(folder), facts["data"]["fingerprint"], facts["device"])
    done = DoneRuns([kept, kept.with_name("nowhere")])
    found = done.find(key, ["validation/loss"])
    assert found is not None
    assert found.folder == folder
    assert done.find(key, ["no/such/metric"]) is None
    assert done.find(key, with_model=True) is None  # weights are not kept
    assert done.find("0" * 16) is None


def test_runs_that_have_not_ended_or_are_broken_count_for_nothing(tmp_path: Path):
    (tmp_path / RUN).write_text('{"status": "running"}')
    assert key_of(tmp_path) is None
    (tmp_path / RUN).write_text('{"status": "finished", "data": {"fingerprint": "0"}}')
    assert key_of(tmp_path) is None  # no config.yaml
    (tmp_path / "config.yaml").write_text("- a list")
    assert key_of(tmp_path) is None
    (tmp_path / RUN).write_text("{")
    assert DoneRuns([tmp_path]).find("0") is None


def test_a_key_that_looks_like_a_number_names_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    made = JobMaker(tmp_path, None).job(LINES, [*TINY, *LINES.overrides])
    assert isinstance(made, Job)
    keys = ("12e4567890123456", "0012345678901234")
    assert launch({key: Job(key, made.overrides) for key in keys}, tmp_path / "runs", ()) == []
    assert {path.name for path in (tmp_path / "runs").iterdir()} == set(keys)
    assert {key_of(tmp_path / "runs" / key) for key in keys} == {made.key}


def test_a_run_that_another_process_makes_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    made = JobMaker(tmp_path, None).job(LINES, [*TINY, *LINES.overrides])
    assert isinstance(made, Job)
    waited = []
    lock = RunLock(tmp_path / "runs" / made.key)
    lock.__enter__()

    def let_go(seconds: float) -> None:
        if not waited:
            lock.__exit__(None, None, None)
        waited.append(seconds)

    monkeypatch.setattr("natattn.reproduce.runner.time.sleep", let_go)
    assert launch({"held": made}, tmp_path / "runs", ()) == []
    assert waited
    assert key_of(tmp_path / "runs" / made.key) == made.key


def _jobs_of_seeds(folder: Path, seeds: list[int], *overrides: str) -> list[Job]:
    maker = JobMaker(folder, None)
    jobs = [maker.job(LINES, [*TINY, *LINES.overrides, *overrides, f"seed={seed}"]) for seed in seeds]
    return [job for job in jobs if isinstance(job, Job)]


def test_seeds_that_follow_each_other_are_trained_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    jobs = _jobs_of_seeds(tmp_path, [7, 5, 6, 9])
    runs, apart = tmp_path / "runs", tmp_path / "apart"
    assert launch({job.key: job for job in jobs}, runs, (), seeds_together=True) == []
    assert launch({jobs[1].key: jobs[1]}, apart, ()) == []
    assert {path.name for path in runs.iterdir()} == {job.key for job in jobs}
    for job, together in zip(jobs, (3, 3, 3, None), strict=True):
        assert key_of(runs / job.key) == job.key
        assert json.loads((runs / job.key / RUN).read_text()).get("replicas") == together
        assert not (runs / job.key / "checkpoints").exists()
    values = [read_metrics(folder / jobs[1].key / "metrics.jsonl") for folder in (runs, apart)]
    losses = [metrics.value[metrics.name == "validation/loss"] for metrics in values]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_seeds_of_which_one_has_begun_go_on_one_after_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    jobs = _jobs_of_seeds(tmp_path, [0, 1])
    assert launch({jobs[1].key: jobs[1]}, tmp_path, ()) == []
    settings = compose_run(quote_paths((*jobs[0].overrides, "seeds=2")))
    assert _train(settings, [tmp_path / job.key for job in jobs])
    assert [key_of(tmp_path / job.key) for job in jobs] == [job.key for job in jobs]


@pytest.mark.parametrize(
    "overrides",
    [("model.dropout=0.1",), ("size.n_embd=256",), ("reference=adamw",), ("train.compile=true",), ("model=published",)],
)
def test_seeds_are_left_alone_where_together_is_impossible_or_not_known_to_be_faster(tmp_path: Path, overrides):
    jobs = _jobs_of_seeds(tmp_path, [0, 1], *overrides)
    assert bundled(jobs, tmp_path) == [(jobs[0],), (jobs[1],)]


def test_no_more_seeds_go_together_than_have_been_measured(tmp_path: Path):
    jobs = _jobs_of_seeds(tmp_path, list(range(10)))
    assert [len(bundle) for bundle in bundled(jobs, tmp_path)] == [8, 2]


@pytest.mark.parametrize(
    ("limits", "name", "content"),
    [
        ({}, "valid.txt", "one\ntwo \u00e9\nthree\n"),
        ({"lines": 2}, "valid_2_lines.txt", "one\ntwo \u00e9\n"),
        ({"bytes": 7}, "valid_7_bytes.txt", "one\ntwo"),
        ({"lines": 1, "bytes": 2}, "valid_1_lines_2_bytes.txt", "on"),
    ],
)
def test_an_excerpt_is_the_beginning_of_the_text_and_named_by_what_it_is(limits, name, content, tmp_path: Path):
    (tmp_path / "valid.txt").write_text("one\ntwo \u00e9\nthree\n", encoding="utf-8")
    corpus = CorpusSettings.model_validate({"files": {"train": {"of": "valid.txt", **limits}}})
    made = tmp_path / "texts" / name
    for _ in range(2):
        assert file_overrides(corpus, str(tmp_path), tmp_path / "texts") == [f"data.train={made}"]
        assert made.read_text(encoding="utf-8") == content
        made.write_text("changed by someone")  # it is made again


def test_texts_that_cannot_be_written_are_one_line(tmp_path: Path):
    (tmp_path / "texts").write_text("a file in the place of the folder")
    with pytest.raises(UserError, match="texts: cannot be written to: "):
        file_overrides(LINES, None, tmp_path / "texts")


def _broken(*arguments: object) -> bool:
    raise RuntimeError("it broke\nat some place")


def test_a_job_that_breaks_is_one_line_and_leaves_its_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("natattn.reproduce.runner._train", _broken)
    (failure,) = launch({"made: adam": Job("0123", TINY)}, tmp_path / "runs", ())
    log = Path("runs") / "0123" / "log.txt"
    assert failure == f"made: adam: RuntimeError: it broke (see {log})"
    assert "Traceback" in log.read_text()
    assert capsys.readouterr().err.count(f"natattn: failed: {failure}\n") == 1


def test_a_job_that_a_launcher_could_not_begin_has_failed():
    """Hydra raises what went wrong around a job when its result is asked for."""
    result = JobReturn()
    result.status, result.return_value = JobStatus.FAILED, RuntimeError("no such machine\nand more lines")
    done = JobReturn()
    done.status, done.return_value = JobStatus.COMPLETED, None
    jobs = [[Job("0123", TINY)], [Job("4567", TINY)]]
    labels = {"0123": "made: adam", "4567": "made: muon"}
    assert _failures(jobs, [result, done], labels) == ["made: adam: no such machine"]


def test_runs_that_have_no_folder_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").write_text("a file in the place of the folder")
    with pytest.raises(UserError, match=r"runs.*: cannot be written to: "):
        launch({"made": Job("0123", TINY)}, tmp_path / "runs", ())


def test_jobs_are_launched_from_any_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Python lets the main thread alone handle signals."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("natattn.reproduce.runner._train", lambda *arguments: True)
    with ThreadPoolExecutor(1) as threads:
        assert threads.submit(launch, {"made": Job("0123", TINY)}, tmp_path / "runs", ()).result() == []
