"""Run folders, configurations and data files of strangers are data: they lead nowhere and bring nothing down."""

import contextlib
import gzip
import json
import math
import os
import shlex
import signal
import struct
import zlib
from pathlib import Path

import pytest
from property_tools import run

from natattn.data.text import readers
from natattn.errors import UserError
from natattn.storage import documents as plain
from natattn.storage.documents import finite_number, parsed_json, whole_number
from natattn.storage.redaction import one_line
from natattn.training.checkpoint import load_newest
from natattn.training.environment import read_environment
from natattn.training.resource_errors import resume_hint
from natattn.training.run_folder import check_contained, read_config
from natattn.training.run_record import resumed_record

SLOW = pytest.mark.slow
BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12)
)
SECRET = "hf_0123456789abcdefghijklmnop"
# One of each kind at every run of the tests, all of them with the slow ones.
QUICK_YAML = {"code", "aliases", "itself", "rather deep", "keys of several types"}
QUICK_FACTS = {"seed", "status", "arms"}
HOSTILE_YAML = {
    "code": "a: !!python/object/apply:os.mkdir [marker]",
    "module": "a: !!python/name:os.system ''",
    "aliases": BOMB,
    "itself": "a: &a [*a]",
    "itself in a mapping": "a: &a {b: *a}",
    "deep": "[" * 5000,
    "rather deep": "{a: " * 500 + "1" + "}" * 500,
    "long number": "a: " + "9" * 5000,
    "long hexadecimal number": "a: 0x" + "f" * 5000,
    "no date": "a: 2026-99-99",
    "keys of several types": "a: [{1: 2, b: 3}]",
    "key that is a list": "? [a, b]\n: 1",
    "not UTF-8": b"a: \xff",
    "no mapping": "- a\n- b",
    "nothing": "",
    "control characters": "a: \x00\x1b[2J",
}


def marked(cases, quick):
    """Parameters of a test of which some are quick."""
    return [
        pytest.param(*(case if isinstance(case, tuple) else (case,)), id=str(name), marks=() if name in quick else SLOW)
        for name, case in cases.items()
    ]


@pytest.mark.parametrize("content", marked(HOSTILE_YAML, QUICK_YAML))
def test_hostile_yaml_is_refused_at_once_and_a_run_is_shown_without_it(content, make_run, monkeypatch, tmp_path):
    folder = make_run("run", steps=20, evaluations=2)
    monkeypatch.chdir(tmp_path)
    (folder / "config.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError) as refused:
        read_config(folder)
    assert len(one_line(str(refused.value))) < 400
    ended = run("train", f"resume={folder}")
    assert ended.is_one_line, ended
    ended = run("report", str(folder))
    assert ended.code == 0, ended
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("text", ["[" * 100_000, "{" * 3, '{"a": ' * 3000, "9" * 5000, "\ufeff{}"])
def test_hostile_json_is_a_value_error(text):
    with pytest.raises(ValueError, match=r"."):
        parsed_json(text)


@pytest.mark.parametrize("value", [True, 1.0, "1", None, [1], 2**63, 10**400, -1], ids=lambda value: str(value)[:9])
def test_what_is_no_whole_number_is_a_value_error(value):
    with pytest.raises(ValueError, match="is not an integer of at least 0"):
        whole_number(value, least=0)


@pytest.mark.parametrize("value", [True, "1", None, [1], math.nan, math.inf, 10**400, -0.5], ids=lambda v: str(v)[:9])
def test_what_is_no_number_is_a_value_error(value):
    with pytest.raises(ValueError, match="is not a number of at least 0"):
        finite_number(value, least=0)


def test_interpolations_and_targets_in_a_run_are_words(make_run, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_TOKEN", SECRET)
    monkeypatch.chdir(tmp_path)
    hostile = {"model": {"name": "${oc.env:HF_TOKEN}", "_target_": "os.mkdir", "path": "marker"}}
    folder = make_run("run", steps=20, evaluations=2, config=hostile)
    other = make_run("other", steps=20, evaluations=2, config={"model": {"name": "natural"}})
    assert read_config(folder)["model"]["name"] == "${oc.env:HF_TOKEN}"
    ended = run("report", str(folder), str(other), "output=page.html")
    assert ended.code == 0, ended
    page = Path("page.html").read_text()
    assert SECRET not in page + ended.out
    assert "${oc.env:HF_TOKEN}" in page
    ended = run("train", f"resume={folder}")
    assert ended.is_one_line, ended
    assert not (tmp_path / "marker").exists()


HOSTILE_FACTS = {
    "candidate": ["../../other", ["natural"], {"a": 1}, 3, None, "\x1b[2J"],
    "reference": [["standard"], 3, {}],
    "arms": [[], {"../../x": {}}, {"natural": []}, {"\x1b]0;x\x07": {"optim": "a"}}, 3],
    "status": [3, None, ["finished"], "[/red][link=file:///etc/passwd]x", "\x1b[2J\x1b[H"],
    "steps": ["600", [], 10**30, True, {"a": [1]}],
    "seed": [["<b>"], "0", {}, 1.5, 10**300],
    "label": [3, ["a"], "x" * 100_000, "\x1b[31m[bold]:smile:"],
    "data": [[], {}, {"name": "x", "fingerprint": 3}],
    "tokens_per_step": ["many", [], 10**400],
    "unit": ["furlong", 3, []],
    "leaky": [3, {"natural": 1}, "natural"],
    "device": [3, None],
    "initial_weights_hash": [3, []],
}


@pytest.mark.parametrize(
    ("key", "values"), marked({key: (key, values) for key, values in HOSTILE_FACTS.items()}, QUICK_FACTS)
)
def test_hostile_facts_of_a_run_never_crash_a_report(key, values, make_run, monkeypatch, tmp_path):
    folder = make_run("run", steps=20, evaluations=2)
    good = make_run("good", steps=20, evaluations=2)
    monkeypatch.chdir(tmp_path)
    facts = json.loads((folder / "run.json").read_text())
    for value in values:
        (folder / "run.json").write_text(json.dumps({**facts, key: value}))
        alone, beside = (
            run("report", str(folder), "output=1.html"),
            run("report", str(folder), str(good), "output=2.html"),
        )
        assert alone.code == 0 or alone.is_one_line, (value, alone)
        assert beside.code == 0, (value, beside)
        assert "\x1b" not in alone.out + beside.out, value


@pytest.mark.parametrize("key", ["validation_bytes", "unigram_entropy", "held_out_bigram_entropy", "floor"])
@pytest.mark.parametrize(
    "value", marked({each: each for each in (0, math.nan, math.inf, -1, "4.8", None, True)}, {math.nan})
)
def test_hostile_numbers_of_the_data_never_crash_a_report(key, value, make_run, monkeypatch, tmp_path):
    folder = make_run("run", steps=20, evaluations=2)
    monkeypatch.chdir(tmp_path)
    facts = json.loads((folder / "run.json").read_text())
    facts["data"][key] = value  # nan as Python writes it, which is no JSON
    (folder / "run.json").write_text(json.dumps(facts))
    ended = run("report", str(folder), "output=1.html")
    assert ended.code == 0 or ended.is_one_line, ended


def test_a_run_that_is_gone_on_with_has_a_harmless_name_in_paths():
    now = {"data": {"fingerprint": "f" * 64}, "initial_weights_hash": "a" * 64, "run_id": "0123456789ab"}
    for hostile in ("../../x", "a/b", "", 3, None, ["a"], "x" * 100, "a\n"):
        kept = resumed_record(dict(now), {**now, "run_id": hostile, "group": ["../x"]})
        assert (kept["run_id"], kept["group"]) == ("0123456789ab", None)
    assert resumed_record(dict(now), {**now, "run_id": "fedcba987654"})["run_id"] == "fedcba987654"
    for hostile in ({}, {"fingerprint": 3}, [], None, 3):
        with pytest.raises(UserError, match="the data changed"):
            resumed_record(dict(now), {**now, "data": hostile})


@pytest.mark.parametrize(
    "override",
    ["model.name=../x", "size.name=a/b", "optim.name=..", "optim.name='a\nb'", "experiment=../../x", "data=../text",
     "model.name=" + "x" * 300],
)  # fmt: skip
def test_names_that_become_parts_of_paths_are_names(override, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ended = run("train", override)
    assert ended.is_one_line, ended
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("arm", ["../../secret", "..", "/etc", "natural/../../x", "\x1b[2J"])
def test_an_arm_is_one_of_the_runs_own(arm, make_run, tmp_path):
    folder = make_run("run", steps=20, evaluations=2)
    (folder / "arms" / "natural" / "model").mkdir(parents=True)
    (tmp_path / "secret" / "model").mkdir(parents=True)
    ended = run("sample", f"run={folder}", f"arm={arm}")
    assert ended.is_one_line, ended
    assert "valid: natural" in ended.error


@pytest.mark.parametrize(
    "name",
    ["metrics.jsonl", "run.lock", "arms/natural", "checkpoints", "curves.png", "arms/loop", "wandb", "wandb/debug.log"],
)
def test_nothing_is_written_through_a_link_that_leads_out(name, make_run, tmp_path):
    folder = make_run("run", steps=20, evaluations=2)
    target = tmp_path / "precious"
    target.write_text("precious\n")
    place = folder / name
    place.unlink(missing_ok=True)
    place.parent.mkdir(exist_ok=True)
    os.symlink(place if name.endswith("loop") else target, place)
    with pytest.raises(UserError, match="a link that leads out"):
        check_contained(folder)
    assert target.read_text() == "precious\n"


@pytest.mark.parametrize("name", ["run.json", "environment.json", "curves.png", "metrics.jsonl"])
def test_a_folder_where_a_file_is_written_is_refused_first(name, make_run):
    folder = make_run("run", steps=20, evaluations=2)
    (folder / name).unlink(missing_ok=True)
    (folder / name).mkdir()
    with pytest.raises(UserError, match=rf"{name}: not a regular file; valid: "):
        check_contained(folder)


@pytest.mark.parametrize(
    "name", ["checkpoints", "checkpoints/step-000020", "checkpoints/best", "arms", "arms/natural", "arms/natural/model"]
)
@pytest.mark.parametrize("make", [Path.touch, os.mkfifo], ids=["file", "pipe"])
def test_a_file_or_a_pipe_where_a_folder_is_made_is_refused_first(make, name, make_run):
    folder = make_run("run", steps=20, evaluations=2)
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    make(folder / name)
    with pytest.raises(UserError, match=rf"{name}: not a folder; valid: "):
        check_contained(folder)


def test_notes_and_empty_folders_of_the_user_are_fine(make_run):
    folder = make_run("run", steps=20, evaluations=2)
    for name in ("arms/.DS_Store", "arms/notes.txt", "checkpoints/notes.txt", "notes.txt"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
    os.mkfifo(folder / "my_pipe")  # nothing that we write to
    check_contained(folder)


@pytest.mark.parametrize("kind", ["pipe", "device", "large file"])
@pytest.mark.parametrize("name", ["run.json", "metrics.jsonl", "config.yaml", "environment.json"])
def test_what_has_no_end_is_not_read(name, kind, make_run, monkeypatch, tmp_path):
    folder, good = (make_run(each, steps=20, evaluations=2) for each in ("run", "good"))
    monkeypatch.chdir(tmp_path)
    place = folder / name
    place.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(place)
    elif kind == "device":
        place.symlink_to("/dev/zero")
    elif name != "metrics.jsonl":  # which is read in pieces
        monkeypatch.setattr(plain, "MOST_JSON", 1 << 20)
        place.write_text(f'{{"a": "{"a" * (1 << 20)}"}}')
    with _deadline():
        beside = run("report", str(folder), str(good), "output=page.html")
        assert beside.code == 0, beside
        assert ("broken: " in beside.out) == (name in ("run.json", "metrics.jsonl"))
        assert read_environment(folder) == {}
        if name == "config.yaml":
            ended = run("train", f"resume={folder}")
            assert ended.is_one_line, ended
            assert "config.yaml: " in ended.error


@contextlib.contextmanager
def _deadline(seconds: int = 30):
    """Whoever waits for a pipe is interrupted."""

    def late(number, frame):
        pytest.fail("it waits, or reads on")  # no exception that a reader would take for the file's

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def test_a_pipe_in_a_model_or_a_checkpoint_is_not_waited_for(make_run):
    folder = make_run("run", steps=20, evaluations=2)
    for name in ("arms/natural/model/config.json", "checkpoints/step-000020/manifest.json"):
        (folder / name).parent.mkdir(parents=True)
        os.mkfifo(folder / name)
    with _deadline():
        for command in ("sample", "analyze"):
            ended = run(command, f"run={folder}")
            assert ended.is_one_line, ended
            assert "a pipe, a socket or a device" in ended.error
        with pytest.raises(UserError, match="damaged"):
            load_newest(folder / "checkpoints")


@pytest.mark.parametrize(
    "arguments",
    [("train", "resume={}"), ("sample", "run={}"), ("analyze", "run={}"), ("report", "{}"),
     ("report", "run", "output={}"), ("train", "data=text", "data.train={}", "tokenizer=byte"),
     ("train", "task=vision", "data=image_folder", "data.train={}"),
     ("train", "task=multimodal", "data=captions", "data.train={}")],
    ids=" ".join,
)  # fmt: skip
def test_a_name_that_is_too_long_is_one_line(arguments, make_run, monkeypatch, tmp_path):
    make_run("run", steps=20, evaluations=2)
    monkeypatch.chdir(tmp_path)
    ended = run(*(each.format("x" * 300) for each in arguments))
    assert ended.is_one_line, ended


def test_commands_that_are_printed_can_be_pasted(make_run, monkeypatch, tmp_path):
    folder = make_run("my $run's", steps=20, evaluations=2, stopped_at=10)
    monkeypatch.chdir(tmp_path)
    hint = resume_hint(Path(folder.name), shlex.quote(folder.name))
    command = shlex.split(hint[hint.index("natattn train") :])
    assert command == ["natattn", "train", f"resume={folder.name}"]
    again = run(*command[1:])  # it is found; what the settings of such a run lack is another matter
    assert "model.name" in again.error or "missing" in again.error, again
    assert shlex.quote(folder.name) in run("sample", f"run={folder.name}").error


def test_links_within_a_run_folder_and_to_it_are_fine(make_run, tmp_path):
    folder = make_run("run", steps=20, evaluations=2)
    (folder / "checkpoints" / "step-000001").mkdir(parents=True)
    os.symlink("step-000001", folder / "checkpoints" / "latest")
    os.symlink(tmp_path, folder / "notes")  # nothing of ours
    os.symlink(folder, tmp_path / "by_another_name")
    (folder / "wandb" / "offline-run-1" / "logs").mkdir(parents=True)
    os.symlink(tmp_path / "core.log", folder / "wandb" / "offline-run-1" / "logs" / "debug-core.log")  # wandb's own
    check_contained(folder)
    check_contained(tmp_path / "by_another_name")


def test_a_manifest_that_names_other_files_is_damaged(tmp_path):
    (tmp_path / "secret").write_text("x")
    step = tmp_path / "checkpoints" / "step-000001"
    step.mkdir(parents=True)
    (step / "state.json").write_text("{}")
    for names in (["../../secret"], ["/etc/passwd"], ["state.json", "../../secret"], ["state.json", "x" * 300]):
        (step / "manifest.json").write_text(json.dumps(dict.fromkeys(names, "0")))
        with pytest.raises(UserError, match="damaged"):
            load_newest(tmp_path / "checkpoints")
    for name in ("step-²", "step-", "step--1", "step-1e3"):
        (tmp_path / "checkpoints" / name).mkdir()
    with pytest.raises(UserError, match="all 1 checkpoints"):
        load_newest(tmp_path / "checkpoints")


def png(width: int, height: int) -> bytes:
    """An image file that says that it is so large."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = zlib.compress(b"\0" * 10_000)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("width", "height"), [(100_000, 100_000), (12_000, 9_000), (2**31 - 1, 1)])
def test_an_image_that_unpacks_to_gigabytes_is_one_line(width, height, tmp_path, monkeypatch, recwarn):
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for number in range(6):
            (tmp_path / "pictures" / name / f"{number}.png").write_bytes(png(width, height + number))
    ended = run("train", "task=vision", "data=image_folder", "data.train=pictures", "data.image_size=8", "tracker=off")
    assert ended.is_one_line, ended
    assert "cannot be decoded" in ended.error
    assert not [warning for warning in recwarn if "ecompression" in str(warning.message)]


@pytest.mark.parametrize("name", ["bomb.txt.gz", "bomb.jsonl.gz"])
def test_a_text_that_unpacks_to_gigabytes_is_one_line(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(readers, "_ANY_UNPACKED", 1 << 16)
    (tmp_path / name).write_bytes(gzip.compress(b"a\n" * (1 << 21)))
    ended = run("train", "data=text", f"data.train={name}", "tokenizer=byte", "tracker=off")
    assert ended.is_one_line, ended
    assert "unpacks to more than 200 times its size" in ended.error or "not a line of JSON" in ended.error
    ordinary = tmp_path / "ordinary.txt.gz"
    ordinary.write_bytes(gzip.compress("".join(f"line {n * n}\n" for n in range(20_000)).encode()))
    assert "".join(readers.text_pieces(ordinary, "strict")).endswith(f"line {19_999**2}\n")


def test_a_line_without_end_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "_LONGEST_LINE", 1 << 10)
    path = tmp_path / "long.jsonl"
    path.write_text('{"text": "short"}\n{"text": "' + "a" * 4096 + '"}\n')
    found = readers.jsonl_documents(path, "text", "strict")
    assert next(found) == "short"
    with pytest.raises(UserError, match=r"long\.jsonl:2: a line of more than"):
        next(found)


def test_a_list_of_images_reads_images_alone_and_writes_nothing(tmp_path, monkeypatch):
    """Images may lie anywhere that the user can read; what is no image is not shown."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret.txt").write_text("the secret itself")
    (tmp_path / "data").mkdir()
    for image in ("../secret.txt", "/dev/zero", "../missing\x1b[2J"):
        (tmp_path / "data" / "list.jsonl").write_text(
            "".join(json.dumps({"image": image, "caption": f"a {n}"}) + "\n" for n in range(30))
        )
        before = sorted(tmp_path.rglob("*"))
        ended = run("train", "task=multimodal", "data=captions", "data.train=data/list.jsonl", "tracker=off")
        assert ended.is_one_line, ended
        assert "the secret itself" not in ended.error
        assert sorted(tmp_path.rglob("*")) == before
