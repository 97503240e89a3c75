"""A GGUF file is analysed as the same model in transformers' own format is."""

from pathlib import Path

import gguf
import numpy as np
import pytest
from rendered import sections
from transformers import AutoModelForCausalLM, AutoTokenizer

from natattn.cli.main import main
from natattn.models.pretrained import forget_quantization

WIDTH, HEADS, LAYERS, INNER = 16, 2, 2, 32
PIECES = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "b", "▁a", "ab"]
NAMES = {
    "attn_q": (WIDTH, WIDTH), "attn_k": (WIDTH, WIDTH), "attn_v": (WIDTH, WIDTH), "attn_output": (WIDTH, WIDTH),
    "ffn_gate": (INNER, WIDTH), "ffn_up": (INNER, WIDTH), "ffn_down": (WIDTH, INNER),
}  # fmt: skip


@pytest.fixture
def model(tmp_path) -> Path:
    """A Llama with random weights and a vocabulary of bytes."""
    path = tmp_path / "tiny.gguf"
    random = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_vocab_size(len(PIECES))
    writer.add_tokenizer_model("llama")
    writer.add_token_list(PIECES)
    writer.add_token_scores([-1.0] * len(PIECES))
    writer.add_token_types([2, 3, 3, *[6] * 256, *[1] * 5])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    tensors = {"token_embd": (len(PIECES), WIDTH), "output": (len(PIECES), WIDTH)}
    tensors |= {f"blk.{layer}.{name}": shape for layer in range(LAYERS) for name, shape in NAMES.items()}
    for name, shape in tensors.items():
        writer.add_tensor(f"{name}.weight", (0.3 * random.normal(size=shape)).astype(np.float32))
    for name in ("output_norm", *(f"blk.{i}.{norm}" for i in range(LAYERS) for norm in ("attn_norm", "ffn_norm"))):
        writer.add_tensor(f"{name}.weight", np.ones(WIDTH, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def analysed(path: Path, folder: Path, text: Path) -> dict:
    arguments = ["init=pretrained", f"init.path={path}", "data=text", f"data.train={text}", f"output={folder}"]
    options = [
        "sections=[heads,propagated]",
        "text.sequences=4",
        "text.context=16",
        "temperatures.count=5",
        "replicas=0",
    ]
    assert main(["analyze", *arguments, *options, "device=cpu"]) == 0
    return sections(folder)


def test_a_gguf_file_is_the_model_that_it_holds(model, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("ab a b ba ab\n" * 300)
    folder = tmp_path / "folder"
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=model.name)
    forget_quantization(loaded)
    loaded.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tmp_path, gguf_file=model.name).save_pretrained(folder)
    found, expected = analysed(model, tmp_path / "of_file", text), analysed(folder, tmp_path / "of_folder", text)
    for ours, theirs in zip(found["heads"]["maps"], expected["heads"]["maps"], strict=True):
        np.testing.assert_allclose(ours["values"], theirs["values"], rtol=1e-5)
    assert found["propagated"]["findings"] == expected["propagated"]["findings"]
    assert any("loss is least" in finding for finding in found["propagated"]["findings"])


def test_training_begins_from_it_and_saves(model, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("ab a b ba ab\n" * 300)
    run = tmp_path / "run"
    arguments = ["init=pretrained", f"init.path={model}", "data=text", f"data.train={text}", "tracker=off"]
    steps = ["size.context=16", "train.steps=2", "train.batch_size=2", "train.device=cpu", "optim=adamw"]
    assert main(["train", *arguments, *steps, "train.evaluate_every=2", f"hydra.run.dir={run}"]) == 0
    assert AutoModelForCausalLM.from_pretrained(run / "arms" / "natural" / "model").config.hidden_size == WIDTH


def test_a_damaged_file_is_one_line(tmp_path, capsys):
    (tmp_path / "broken.gguf").write_bytes(b"GGUF, or so it says")
    assert main(["analyze", "init=pretrained", f"init.path={tmp_path}/broken.gguf", f"output={tmp_path}/page"]) == 2
    error = capsys.readouterr().err
    assert "broken.gguf" in error
    assert error.strip().count("\n") == 0
    assert not (tmp_path / "page").exists()
