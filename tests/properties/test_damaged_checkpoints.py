"""No run goes on from damaged numbers: it takes an older whole checkpoint, and says so, or says what is wrong."""

import json
import shutil
import tempfile
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st
from property_tools import TRIED, examples, run

from natattn.errors import UserError
from natattn.storage.redaction import one_line
from natattn.training.checkpoint import load_newest

Damage = Callable[[Path], None]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 2**70) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


def chosen(folder: Path, number: int) -> Path:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return files[number % len(files)]


@st.composite
def damages(draw: st.DrawFn) -> Damage:
    """One thing done to one file of a checkpoint, or to its folder."""
    what = draw(st.sampled_from(("flip", "cut", "remove", "empty", "grow", "foreign", "swap", "text")))
    number, place, bit = draw(st.integers(0, 20)), draw(st.integers(0, 10**6)), draw(st.integers(0, 7))
    text = draw(st.sampled_from(("", "{", "[]", "null", "{}", "[" * 5000, '{"state.json": 3}', "\ufeff{}")))

    def damage(folder: Path) -> None:
        file = chosen(folder, number)
        content = bytearray(file.read_bytes())
        if what == "flip":
            content[place % len(content)] ^= 1 << bit
            file.write_bytes(content)
        elif what == "cut":
            file.write_bytes(content[: place % len(content)])
        elif what == "remove":
            file.unlink()
        elif what == "empty":
            shutil.rmtree(folder)
            folder.mkdir()
        elif what == "grow":
            file.write_bytes(bytes(content) + b"\0")
        elif what == "foreign":
            (folder / "natural.parts").mkdir()
            (folder / "natural.parts" / "x.safetensors").write_bytes(content)
        elif what == "swap":
            other = chosen(folder, number + 1)
            file.write_bytes(other.read_bytes())
        else:
            file.write_text(text, encoding="utf-8")

    return damage


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@examples(20)
@given(harm=st.lists(damages(), max_size=3))
def test_the_newest_whole_checkpoint_is_taken(finished: Path, harm: list[Damage]) -> None:
    TRIED["damaged checkpoints"] += 1
    whole = contents(finished / "checkpoints")
    with tempfile.TemporaryDirectory() as folder:
        copied = Path(shutil.copytree(finished / "checkpoints", Path(folder, "checkpoints")))
        names = ["step-000003", "step-000002", "step-000001"]
        for name, damage in zip(names, harm, strict=False):
            damage(copied / name)
        before = contents(copied)
        intact = [name for name in names if of(before, name) == of(whole, name)]
        if not intact:
            refused_or_same(copied, before, whole)
            return
        found, state, warnings = load_newest(copied)
        assert found is not None
        # A manifest may be written otherwise and say the same; the numbers may not differ.
        assert same_numbers(before, whole, found.name)
        assert found.name == intact[0] or found.name > intact[0]
        assert state == json.loads(whole[f"{found.name}/state.json"])
        assert len(warnings) == names.index(found.name)


def refused_or_same(folder: Path, before: dict[str, bytes], whole: dict[str, bytes]) -> None:
    """No checkpoint is as it was written; what is taken must still have the numbers that were."""
    try:
        found, _, _ = load_newest(folder)
    except UserError as error:
        message = str(error)
    else:
        assert found is not None
        assert same_numbers(before, whole, found.name)
        return
    assert one_line(message) == message
    assert contents(folder) == before


def of(files: dict[str, bytes], name: str) -> dict[str, bytes]:
    return {path: content for path, content in files.items() if path.startswith(f"{name}/")}


def same_numbers(files: dict[str, bytes], whole: dict[str, bytes], name: str) -> bool:
    here, there = (
        {path: content for path, content in of(each, name).items() if not path.endswith("manifest.json")}
        for each in (files, whole)
    )
    return here == there and bool(here)


def walk(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of everything in nested JSON."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(found for key, inner in items for found in walk(inner, (*path, key)))]


def forge(folder: Path, place: int, value: Any) -> None:
    """Write something else into state.json, with digests that say that nothing happened."""
    path = folder / "state.json"
    state = json.loads(path.read_text())
    *outer, last = walk(state)[1:][place % (len(walk(state)) - 1)]
    inner = state
    for key in outer:
        inner = inner[key]
    inner[last] = value
    path.write_text(json.dumps(state))
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["state.json"] = sha256(path.read_bytes()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))


@examples(1)
@given(place=st.integers(0, 500), value=JSON)
@example(place=0, value=None)
@example(place=4, value=10**400)  # the seconds of training
def test_a_forged_state_is_refused_in_one_line_or_harmless(finished: Path, place: int, value: Any) -> None:
    TRIED["forged checkpoints"] += 1
    with tempfile.TemporaryDirectory() as folder:
        copied = Path(shutil.copytree(finished, Path(folder, "run")))
        forge(copied / "checkpoints" / "step-000003", place, value)
        ended = run("train", f"resume={copied}", "train.steps=4")
        assert ended.code in (0, 1) or ended.is_one_line, ended
        assert "Traceback" not in ended.error


@examples(1)
@given(damage=damages())
def test_a_run_goes_on_from_an_older_checkpoint_with_a_word(finished: Path, damage: Damage) -> None:
    TRIED["runs gone on with"] += 1
    with tempfile.TemporaryDirectory() as folder:
        copied = Path(shutil.copytree(finished, Path(folder, "run")))
        damage(copied / "checkpoints" / "step-000003")
        changed = not same_numbers(contents(copied / "checkpoints"), contents(finished / "checkpoints"), "step-000003")
        ended = run("train", f"resume={copied}", "train.steps=4")
        assert ended.code == 0, ended
        assert ("was damaged" in ended.out + ended.error) or not changed
