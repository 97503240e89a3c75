"""`natattn analyze` by running it: a trained arm, a pretrained encoder, what goes wrong, and going on."""

import io
import json
import re
import sys
from dataclasses import replace
from functools import partial

import pytest
import torch
from rendered import sections
from transformers import (
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTModel,
)

import natattn
from natattn.analysis.progress import SectionProgress
from natattn.analysis.registry import MODEL_QUESTIONS
from natattn.analysis.settings import ModelSection, RunsSection
from natattn.cli.main import main
from natattn.report.page import render_analysis
from natattn.report.section import HeadMap, Section, table

FAST = [
    "text.sequences=4", "text.batch_size=2", "temperatures.count=5", "replicas=10", "law_replicas=4", "processes=1",
    "thresholds=[1.0,2.0]", "device=cpu",
]  # fmt: skip


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("analysed") / "run"
    assert main(["train", *tiny, f"hydra.run.dir={folder}"]) == 0
    return folder


def names() -> list[str]:
    return list(ModelSection.__args__)


def test_a_page_with_everything(run, capsys):
    assert main(["analyze", f"run={run}", *FAST]) == 0
    folder = run / "analysis_natural"
    printed = capsys.readouterr().out
    assert f"analysis: {folder / 'analysis.html'}" in printed
    assert all(word in printed for word in ("first finding", "Heads", "Theorems", "10 of 15 statements"))
    results = json.loads((folder / "analysis.json").read_text())
    assert list(results["results"]) == list(results["pictures"]) == names()
    page = (folder / "analysis.html").read_text()
    assert not re.search("https?:", re.sub(r'src="data:[^"]*"', "", page)), "the page must open offline"
    rendered = sections(folder)
    for name, section in rendered.items():
        assert f'id="{name}"' in page
        assert section["findings"]
        assert section["pictures"] == results["pictures"][name]
        for picture in section["pictures"]:
            png = folder / "figures" / f"{picture['name']}.png"
            assert png.read_bytes().startswith(b"\x89PNG")
            assert len(png.with_suffix(".csv").read_text().splitlines()) > 1
    layers = rendered["heads"]["maps"][0]["layers"]
    assert layers == [0, 1]
    assert page.count('class="map"') == sum(len(s["maps"]) for s in rendered.values())


def watch(monkeypatch, measure):
    """Call ``measure(name, question's own measure, *arguments)`` in place of every measure."""
    watched = {
        name: replace(question, measure=partial(measure, name, question.measure))
        for name, question in MODEL_QUESTIONS.items()
    }
    monkeypatch.setattr("natattn.analysis.analyze.MODEL_QUESTIONS", watched)


def test_results_are_kept_and_measured_again_if_something_changed(run, monkeypatch):
    assert main(["analyze", f"run={run}", *FAST, "sections=[heads,patterns]"]) == 0
    made = []
    watch(monkeypatch, lambda name, measure, *arguments: made.append(name) or measure(*arguments))
    assert main(["analyze", f"run={run}", *FAST, "sections=[heads,theorems]"]) == 0
    assert made == [] or made == ["theorems"]
    picture = run / "analysis_natural" / "figures" / "heads.png"
    picture.unlink()
    made.clear()
    assert main(["analyze", f"run={run}", *FAST, "sections=[heads]"]) == 0
    assert made == []
    assert picture.is_file()  # drawn again from the result
    assert main(["analyze", f"run={run}", *FAST, "sections=[heads]", "text.sequences=3"]) == 0
    assert made == ["heads"]
    results = run / "analysis_natural" / "analysis.json"
    damaged = json.loads(results.read_text())
    damaged["results"]["heads"].popitem()
    for text in ("{ damaged", json.dumps(damaged)):
        results.write_text(text)
        made.clear()
        assert main(["analyze", f"run={run}", *FAST, "sections=[heads]", "text.sequences=3"]) == 0
        assert made == ["heads"]


def test_an_interrupted_analysis_resumes(run, tmp_path, monkeypatch):
    def interrupted(at):
        def measure(name, own, *arguments):
            if name == at:
                raise KeyboardInterrupt
            return own(*arguments)

        watch(monkeypatch, measure)

    arguments = ["analyze", f"run={run}", *FAST, "sections=[heads,patterns]", f"output={tmp_path}/page"]
    interrupted("patterns")
    assert main(arguments) == 130
    kept = sections(tmp_path / "page")
    interrupted("heads")
    assert main(arguments) == 0
    again = sections(tmp_path / "page")
    assert again["heads"] == kept["heads"]
    assert list(again) == ["heads", "patterns"]


def test_an_encoder(run, tmp_path):
    folder = tmp_path / "encoder"
    config = BertConfig(
        vocab_size=300, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=64,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((run / "arms" / "natural" / "model" / name).read_bytes())
    text = tmp_path / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog\n" * 400)
    arguments = ["init=pretrained", f"init.path={folder}", "data=text", f"data.train={text}", "text.context=16"]
    assert main(["analyze", *arguments, *FAST, f"output={tmp_path}/page", "sections=[propagated,cascades,heads]"]) == 0
    found = sections(tmp_path / "page")
    assert list(found) == ["propagated", "cascades", "heads"]
    assert not any("loss" in finding for finding in found["propagated"]["findings"])  # it predicts no next token


WRONG = {
    "nothing to look at": ([], "run=FOLDER, or init=pretrained"),
    "no such run": (["run=missing"], "missing"),
    "no such arm": (["run={run}", "arm=other"], "arm=other"),
    "two models": (["run={run}", "init=pretrained", "init.path=x"], "two models"),
    "no such model": (["init=pretrained", "init.path=missing"], "missing"),
    "longer than the model": (["run={run}", "text.context=100000"], "text.context=100000"),
    "unknown key": (["run={run}", "text.sequence=3"], "text.sequence"),
    "unknown section": (["run={run}", "sections=[head]"], "sections"),
    "temperatures the wrong way": (["run={run}", "temperatures.lowest=20"], "must be below"),
    "no such device": (["run={run}", "device=abacus"], "device=abacus"),
}


@pytest.mark.parametrize(("arguments", "said"), WRONG.values(), ids=WRONG.keys())
def test_mistakes_are_one_line(arguments, said, run, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    assert main(["analyze", *(argument.format(run=run) for argument in arguments)]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.strip().count("\n") == 0
    assert "Traceback" not in error
    assert not list(tmp_path.iterdir())


def test_help_names_every_section_and_key(capsys):
    assert main(["analyze", "--help"]) == 0
    text = capsys.readouterr().out
    for word in (*names(), *RunsSection.__args__, "text:", "temperatures:", "law_replicas:", "run:"):
        assert word in text


def test_what_is_no_number_and_what_is_markup_survives_the_page():
    found = Section(
        "x", "<b>", ("a < b",), (table(("name",), [(float("nan"),), ("<script>",)]),),
        (HeadMap("m", "", (0,), ((float("nan"), 1.0),)),),
    )  # fmt: skip
    page = render_analysis("t", {}, [found])
    assert "<b>" not in page
    assert "a &lt; b" in page
    assert "&lt;script&gt;" in page


def saved(model, folder):
    model.save_pretrained(folder)
    return folder


def t5(folder):
    config = T5Config(vocab_size=300, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    return saved(T5ForConditionalGeneration(config), folder)


def vision(folder):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    return saved(ViTModel(ViTConfig(image_size=32, patch_size=16, **sizes)), folder)


def broken(folder):
    model = GPT2LMHeadModel(GPT2Config(vocab_size=300, n_positions=16, n_embd=16, n_layer=1, n_head=2))
    torch.nn.init.constant_(model.transformer.h[0].attn.c_attn.weight, float("nan"))
    return saved(model, folder)


@pytest.mark.parametrize(
    ("make", "said"),
    [(vision, "reads no tokens"), (broken, "weights are not finite")],
)
def test_models_that_cannot_be_looked_at_are_one_line(make, said, tmp_path, capsys):
    text = tmp_path / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog\n" * 400)
    arguments = [f"init.path={make(tmp_path / 'model')}", "data=text", f"data.train={text}", "tokenizer=byte"]
    capsys.readouterr()
    assert main(["analyze", "init=pretrained", *arguments, *FAST, f"output={tmp_path}/page"]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.strip().count("\n") == 0
    assert not (tmp_path / "page").exists()


def test_cross_attention_has_head_maps_of_its_own(tmp_path, capsys):
    text = tmp_path / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog\n" * 400)
    arguments = [f"init.path={t5(tmp_path / 'model')}", "data=text", f"data.train={text}", "tokenizer=byte"]
    assert main(["analyze", "init=pretrained", *arguments, *FAST, f"output={tmp_path}/page"]) == 0
    found = sections(tmp_path / "page")
    assert set(found) == {"heads", "spectra", "theorems"}
    named = found["heads"]["tables"][1]["rows"]
    assert [attends for _, _, attends in named] == ["itself", "itself", "other sequence"]
    entropies = next(each for each in found["heads"]["maps"] if each["name"] == "entropy")
    assert entropies["layers"] == [0, 1, 2]
    assert all(value > 0 for row in entropies["values"] for value in row)
    assert main(["analyze", "init=pretrained", *arguments, *FAST, f"output={tmp_path}/page", "sections=[sizes]"]) == 2
    assert "sizes is not of T5Model; valid: heads, spectra, theorems" in capsys.readouterr().err


def test_another_text_in_the_same_file_is_measured_again(run, tmp_path):
    text, found = tmp_path / "text.txt", []
    model = run / "arms" / "natural" / "model"
    arguments = ["init=pretrained", f"init.path={model}", "tokenizer=pretrained", "data=text", f"data.train={text}"]
    for words in ("the quick brown fox jumps over the lazy dog\n", "pack my box with five dozen liquor jugs\n"):
        text.write_text(words * 400)
        assert main(["analyze", *arguments, *FAST, f"output={tmp_path}/page", "sections=[heads]"]) == 0
        found.append(sections(tmp_path / "page")["heads"]["maps"])
    assert found[0] != found[1]


def test_two_analyses_of_one_folder_keep_each_others_results(run, tmp_path, monkeypatch):
    arguments = ["analyze", f"run={run}", *FAST, f"output={tmp_path}/page"]

    def meanwhile(name, measure, *given):
        monkeypatch.undo()
        assert main([*arguments, "sections=[theorems]"]) == 0
        return measure(*given)

    watch(monkeypatch, meanwhile)
    assert main([*arguments, "sections=[heads]"]) == 0
    assert set(sections(tmp_path / "page")) == {"heads", "theorems"}


def test_a_page_that_cannot_be_written_is_one_line(run, tmp_path, capsys):
    (tmp_path / "page" / "analysis.html").mkdir(parents=True)
    assert main(["analyze", f"run={run}", *FAST, f"output={tmp_path}/page", "sections=[theorems]"]) == 2
    assert "analysis.html: cannot be written" in capsys.readouterr().err


def test_entropies_by_chunks_of_rows_are_those_of_whole_patterns(monkeypatch):
    from natattn.analysis import patterns
    from natattn.analysis.patterns import body_of, row_entropies

    config = GPT2Config(vocab_size=300, n_positions=600, n_embd=16, n_layer=1, n_head=2)
    model = GPT2LMHeadModel(config).eval()
    assert body_of(model) is model.transformer
    model.set_attn_implementation("eager")
    tokens = torch.randint(300, (2, 40))
    expected = torch.special.entr(model(tokens, output_attentions=True).attentions[0].double()).sum(-1)
    natattn.attention.register()
    model.set_attn_implementation("natural")
    monkeypatch.setattr(patterns, "CHUNK_ROWS", 7)  # several, the last one shorter
    torch.testing.assert_close(row_entropies(model, tokens)[0], expected, atol=1e-5, rtol=1e-5)


class Terminal(io.StringIO):
    """What a program that asks takes for a terminal."""

    def isatty(self) -> bool:
        return True


def test_a_terminal_is_shown_a_bar_for_every_section(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    with SectionProgress(["energies", "theorems", "sizes"]) as progress:
        advance = progress.begin("energies")
        advance(2)
        advance(3)
        progress.end("energies")
        progress.skip("theorems")
        progress.begin("sizes")
        progress.end("sizes")  # nothing was counted
        shown = {task.description: (task.completed, task.total) for task in progress._bar.tasks}
    assert shown == {"energies": (5, 5), "theorems (kept)": (1, 1), "sizes": (1, 1)}
    assert all(name in terminal.getvalue() for name in shown)


def test_elsewhere_no_bar_is_shown(monkeypatch):
    monkeypatch.setattr(sys, "stderr", pipe := io.StringIO())
    with SectionProgress(["energies", "theorems"]) as progress:
        progress.begin("energies")(5)
        progress.end("energies")
        progress.skip("theorems")
    assert pipe.getvalue() == ""
