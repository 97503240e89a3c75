"""What the pages hold: their blocks, the commands in these, and the small budget that tests give to each command."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
# Written by the program; their commands are not for readers.
_WRITTEN = ("results/analysis/", "results/studies/", "results/analyses/")
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

SMALL_MODEL = ("size.n_layer=1", "size.n_embd=16", "size.n_head=2")
SHORT = (
    *("train.steps=2", "train.evaluate_every=1", "train.batch_size=4", "train.checkpoint_every=2", "train.device=cpu"),
    "tracker=off",
)
SMALL_GRAMMAR = ("data.train_tokens=4000", "data.validation_tokens=500", "data.test_tokens=0")
SMALL_SCENES = ("data.train_pairs=200", "data.validation_galleries=1", "data.test_galleries=1")
SMALL_ANALYSIS = (
    *("text.sequences=2", "text.context=16", "temperatures.count=3", "replicas=0", "law_replicas=0", "processes=1"),
    "device=cpu",
)


@dataclass(frozen=True)
class Command:
    """A line of a ``bash`` block."""

    page: str
    text: str

    @property
    def words(self) -> list[str]:
        return shlex.split(self.text)


def pages() -> list[Path]:
    """README.md and every page that was written by hand."""
    found = [path for path in DOCS.rglob("*.md") if not path.relative_to(DOCS).as_posix().startswith(_WRITTEN)]
    return [ROOT / "README.md", *sorted(found)]


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path, language: str) -> list[str]:
    """Contents of a page's fenced blocks in this language."""
    return [text for kind, text in _BLOCK.findall(page.read_text(encoding="utf-8")) if kind == language]


def commands(page: Path) -> Iterator[Command]:
    """Commands of the page's ``bash`` blocks, without comments; what ``&&`` joins is two."""
    for block in blocks(page, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            plain = re.sub(r"(^|\s+)#.*$", "", line).strip()
            yield from (Command(name_of(page), " ".join(part.split())) for part in plain.split("&&") if part)


def with_small_budget(words: list[str]) -> list[str]:
    """A `natattn` command's arguments, with overrides behind that make it small; they leave what it is about alone."""
    command, rest = words[0], words[1:]
    given = {word.partition("=")[0].lstrip("+"): word.partition("=")[2] for word in rest}
    if command == "train":
        return [*words, *_small_run(rest, given)]
    if command == "analyze":
        sections = () if "sections" in given or "runs" in given else ("sections=[heads]",)
        return [*words, *SMALL_ANALYSIS, *sections]
    if command == "reproduce":
        return [*(word for word in words if not word.startswith("budget=")), "budget=smoke"]
    return words


def _small_run(rest: list[str], given: dict[str, str]) -> Iterator[str]:
    if "resume" in given or {"--cfg", "--help", "--version"} & set(rest):
        return
    yield from SHORT
    if "experiment" in given and given["experiment"].startswith("published"):
        yield "tokenizer.vocab_size=300"
        return
    task = given.get("task", "language")
    if "init" not in given:
        yield from SMALL_MODEL
        if task == "language":
            yield "size.context=16"
            if "tokenizer" not in given:
                yield "tokenizer=byte"
    if task == "language" and "data" not in given:
        yield "data=grammar"
    if task == "language" and given.get("data", "grammar") == "grammar":
        yield from SMALL_GRAMMAR
    if task == "multimodal" and "data" not in given:
        yield from SMALL_SCENES
