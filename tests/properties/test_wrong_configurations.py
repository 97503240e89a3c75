"""Whatever is wrong with a configuration is said in one line, with exit code 2, and nothing is written."""

import math
from pathlib import Path

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from property_tools import TRIED, examples, run

from natattn.config.compose import _escaped, groups, train_groups
from natattn.training.run_folder import flatten
from natattn.training.settings import compose_run

VALID = (
    "size.n_layer=1", "size.n_embd=8", "size.n_head=1", "size.context=8", "tokenizer=byte", "tracker=off",
    "data=grammar", "data.train_tokens=500", "data.validation_tokens=100", "data.test_tokens=0",
    "train.batch_size=1", "train.steps=1", "train.device=cpu",
)  # fmt: skip
VALUES = flatten(compose_run(VALID).model_dump(mode="json"))
# Of what may be negative, and of what an empty list or mapping is a value.
SIGNED, LISTS = {"data.seed"}, {"tracker.tags", "optim.learning_rates", "reference.learning_rates"}
NUMBERS = sorted(key for key, value in VALUES.items() if type(value) in (int, float))
WHOLE = sorted(key for key, value in VALUES.items() if type(value) is int and key not in SIGNED)
FLAGS = sorted(key for key, value in VALUES.items() if type(value) is bool)
KINDS = sorted(key for key in VALUES if key.rpartition(".")[2] == "kind")
GROUPS = sorted(group for group in train_groups() if group != "experiment")
HUGE = st.integers(2**63, 10**400) | st.integers(-(10**400), -(2**63))
WORDS = st.text(st.characters(exclude_categories=("Cs",)), max_size=30)


def is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return text.strip().lower() in ("null", "true", "false")
    return True


def quoted(text: str) -> str:
    return f"'{_escaped(text)}'"


@st.composite
def wrong_values(draw: st.DrawFn) -> list[str]:
    """An override of one key that no configuration can have."""
    kind = draw(st.sampled_from(("number", "whole", "flag", "kind", "huge")))
    if kind == "number":
        key, value = draw(st.sampled_from(NUMBERS)), draw(
            st.sampled_from(("nan", "inf", "-inf", ".nan", "1e999", "{a: 1}", "{a: {b: []}}", "[1, 2]", "''", "true"))
            | WORDS.filter(lambda text: not is_number(text)).map(quoted)
        )  # fmt: skip
    elif kind == "whole":
        key, value = draw(st.sampled_from(WHOLE)), draw(st.sampled_from(("-1", "-99999", "1.5", "0x10", "1e-3")))
    elif kind == "huge":
        key, value = draw(st.sampled_from(WHOLE)), str(draw(HUGE))
    elif kind == "flag":
        key, value = draw(st.sampled_from(FLAGS)), draw(st.sampled_from(("maybe", "7", "[]", "{}", "''", "2.5")))
    else:
        key, value = draw(st.sampled_from(KINDS)), draw(
            st.sampled_from(("{a: 1}", "[1]", "''", "null", "3"))
            | WORDS.filter(lambda text: text not in VALUES.values()).map(quoted)
        )  # fmt: skip
    return [f"++{key}={value}"]


@st.composite
def wrong_names(draw: st.DrawFn) -> list[str]:
    """A key that nothing reads, an option that does not exist, or what is no override at all."""
    kind = draw(st.sampled_from(("key", "typo", "option", "nonsense")))
    if kind == "key":
        section = draw(st.sampled_from(("", "train.", "optim.", "data.", "model.attention.", "a.b.c.")))
        name = draw(st.from_regex(r"[a-z][a-z_]{0,12}", fullmatch=True))
        assume(f"{section}{name}" not in VALUES and name not in {*VALUES, *(key.partition(".")[0] for key in VALUES)})
        assume(name not in ("hydra", "experiment", "study", "null"))
        return [f"{draw(st.sampled_from(('', '+', '++')))}{section}{name}=1"]
    if kind == "typo":
        key = draw(st.sampled_from(NUMBERS))
        place = draw(st.integers(0, len(key) - 1))
        typo = key[:place] + draw(st.sampled_from("xqz")) + key[place + 1 :]
        assume(typo not in VALUES)
        return [f"{typo}=1"]
    if kind == "option":
        option = draw(WORDS)
        group = draw(st.sampled_from(GROUPS))
        assume(option not in groups()[group])
        return [f"{group}={draw(st.sampled_from((option, quoted(option))))}"]
    text = draw(st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=40))
    assume(not text.startswith(("-", "hydra")) and text.partition("=")[0].strip("+~") not in VALUES)
    return [text]


@examples(6)
@given(wrong=wrong_values() | wrong_names(), other=st.sampled_from(("seed=3", "optim=muon", "model=standard")))
@example(wrong=["train.steps='a\nb'"], other="seed=3")
@example(wrong=["train.steps=true"], other="seed=3")
@example(wrong=["size.n_layer=999999999999"], other="seed=3")
@example(wrong=["size.n_embd=1048576"], other="size.n_layer=10000")
@example(wrong=["seed=${seed}"], other="optim=muon")
@example(wrong=["data=~nobody"], other="seed=3")
@example(wrong=["data=text", "data.train=~nobody/x.txt"], other="seed=3")
@example(wrong=["data=grammar\x1b[2J"], other="seed=3")
@example(wrong=["++optim.learning_rates.hidden=true"], other="seed=3")
def test_what_is_wrong_is_one_line_and_nothing_is_written(wrong: list[str], other: str) -> None:
    TRIED["wrong configurations"] += 1
    folder = Path.cwd()
    ended = run("train", *VALID, other, *wrong)
    assert ended.is_one_line, (wrong, ended)
    assert not list(folder.iterdir()), wrong


@pytest.fixture(autouse=True)
def _nowhere(in_empty_folder: Path) -> None:
    """What is written is seen."""


def test_the_configuration_that_is_made_wrong_is_right(in_empty_folder: Path) -> None:
    ended = run("train", *VALID, "hydra.run.dir=run")
    assert ended.code == 0, ended
    losses = [line for line in (in_empty_folder / "run" / "metrics.jsonl").read_text().splitlines() if "/loss" in line]
    assert losses
    assert len(NUMBERS) > 25
    assert all(math.isfinite(VALUES[key]) for key in NUMBERS)
