import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, normalizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from natattn.cli.main import main
from natattn.data.text.tokenizers import ByteTokenizer
from natattn.errors import UserError
from natattn.training.sampling import SampleSettings, sample_text


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder with one arm of random weights over bytes."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=257, n_positions=16, n_embd=8, n_layer=1, n_head=2, eos_token_id=256, bos_token_id=256
    )
    GPT2LMHeadModel(config).save_pretrained(model_folder(tmp_path))
    ByteTokenizer().save(model_folder(tmp_path))
    return tmp_path


def model_folder(run: Path) -> Path:
    return run / "arms" / "natural" / "model"


def sample(run: Path, **values: object) -> str:
    return "".join(sample_text(SampleSettings.model_validate({"run": str(run), "tokens": 5, **values})))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_the_prompt_is_gone_on_with_and_the_seed_repeats_it(run: Path) -> None:
    text = sample(run, prompt="ab", seed=3, temperature=1.0)
    assert text.startswith("ab")
    assert len(text) > 2
    assert sample(run, prompt="ab", seed=3, temperature=1.0) == text
    assert sample(run, prompt="ab", seed=4, temperature=1.0) != text


@pytest.mark.parametrize("temperature", [5e-324, 1e-300, 1e-37, 1e-30])
def test_a_temperature_near_zero_chooses_the_likeliest_tokens(temperature: float, run: Path) -> None:
    assert sample(run, prompt="ab", temperature=temperature) == sample(run, prompt="ab", temperature=0)


@pytest.mark.parametrize("temperature", [1e30, 1e300])
def test_a_very_high_temperature_chooses_any(temperature: float, run: Path) -> None:
    assert sample(run, prompt="ab", temperature=temperature, top_k=0).startswith("ab")


def test_without_a_prompt_a_document_begins(run: Path) -> None:
    assert sample(run, seed=1)


def test_any_seed_that_torch_takes(run: Path) -> None:
    assert sample(run, seed=2**63 - 1, prompt="a").startswith("a")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda folder: cut(folder / "model.safetensors"), "model cannot be loaded"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"\xff" * 99), "model cannot be loaded"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b""), "model cannot be loaded"),
        (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors"),
        (lambda folder: (folder / "config.json").unlink(), "config.json"),
        (lambda folder: cut(folder / "config.json"), "config.json"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer cannot be loaded"),
        (lambda folder: cut(folder / "tokenizer.json"), "tokenizer cannot be loaded"),
        (lambda folder: (folder / "tokenizer.json").write_text("{}"), "tokenizer cannot be loaded"),
        (lambda folder: [path.unlink() for path in folder.glob("tokenizer*.json")], "tokenizer cannot be loaded"),
    ],
    ids=[
        "cut weights", "garbage for weights", "no byte of weights", "no weights", "no config", "cut config",
        "no tokenizer.json", "cut tokenizer.json", "empty tokenizer.json", "no tokenizer at all",
    ],
)  # fmt: skip
def test_a_damaged_model_is_one_line(
    run: Path, capsys: pytest.CaptureFixture[str], damage: Callable[[Path], object], said: str
) -> None:
    damage(model_folder(run))
    assert main(["sample", f"run={run}", "prompt=a"]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("natattn: ")]
    assert len(lines) == 1
    assert str(model_folder(run)) in lines[0]
    assert said in lines[0]


@pytest.mark.parametrize("seed", [2**63, 2**64, -1])
def test_a_seed_out_of_range_is_one_line(run: Path, capsys: pytest.CaptureFixture[str], seed: int) -> None:
    assert main(["sample", f"run={run}", f"seed={seed}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"seed={seed}" in line


def test_a_prompt_of_no_tokens_is_one_line(run: Path) -> None:
    backend = Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    backend.normalizer = normalizers.Strip()
    PreTrainedTokenizerFast(tokenizer_object=backend).save_pretrained(model_folder(run))
    with pytest.raises(UserError, match="prompt='  ': no token"):
        sample(run, prompt="  ")


def test_a_prompt_that_fills_the_context_is_one_line(run: Path) -> None:
    assert json.loads((model_folder(run) / "config.json").read_text())["n_positions"] == 16
    with pytest.raises(UserError, match="its 16 tokens fill the context of 16"):
        sample(run, prompt="a" * 16)
    assert len(sample(run, prompt="a" * 15, tokens=100)) <= 16
