"""Rows and gradients of small models make their Fisher matrices, and the section says what they are."""

import copy
from types import SimpleNamespace

import pytest
import torch
from dense_fisher import off_diagonal_mean, outer_products, seeded
from fisher_oracles import model_fisher, query_fisher
from transformers import BertConfig, BertModel, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from natattn.analysis import fisher_errors as fisher
from natattn.analysis.fisher_capture import query_gradients, query_rows
from natattn.analysis.fisher_errors import QueryGradients, QueryRows, query_products, true_cosines
from natattn.analysis.patterns import captured
from natattn.analysis.questions.fisher import measure
from natattn.analysis.questions.fisher_claims import section as fisher_page
from natattn.analysis.subject import Subject


def _gpt2(**sizes):
    torch.manual_seed(0)
    defaults = {"vocab_size": 30, "n_positions": 32, "n_embd": 16, "n_layer": 2, "n_head": 2}
    config = GPT2Config(**(defaults | sizes), initializer_range=0.3, bos_token_id=0, eos_token_id=0)
    return GPT2LMHeadModel(config).eval()


def _bert():
    torch.manual_seed(0)
    return BertModel(
        BertConfig(
            vocab_size=30, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16,
            max_position_embeddings=32, initializer_range=0.3,
        )
    ).eval()  # fmt: skip


def _llama():
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=30, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16,
            max_position_embeddings=32,
        )
    ).eval()  # fmt: skip


def _tokens(sequences, length, vocabulary=30):
    return torch.randint(vocabulary, (sequences, length), generator=seeded(9))


@pytest.mark.parametrize("make", [_gpt2, _bert])
def test_rows_of_a_model_are_those_of_its_query_fisher(make):
    model, tokens = make(), _tokens(3, 7)
    rows = query_rows(model, tokens, {0: (0,), 1: (0, 1)}, 7, seed=0, batch_size=2)
    assert set(rows) == {(0, 0), (1, 0), (1, 1)}
    seen = []
    blocks = model.transformer.h if make is _gpt2 else model.encoder.layer
    projection = blocks[1].attn.c_attn if make is _gpt2 else blocks[1].attention.self.query
    handle = projection.register_forward_hook(lambda _, arguments, __: seen.append(arguments[0]))
    expected = 0
    captures = []
    with captured(model, lambda site, inputs: captures.append(inputs) if site.layer == 1 else None):
        model(input_ids=tokens)
    handle.remove()
    expected = query_fisher(captures[0], seen[0]) / 21
    for head in (0, 1):
        torch.testing.assert_close(outer_products(rows[1, head]).mean((0, 1)), expected[head], rtol=1e-3, atol=1e-5)


def test_rows_are_a_sample_without_replacement_and_addressed():
    model, tokens = _gpt2(), _tokens(2, 16)
    first, again, other = (query_rows(model, tokens, {0: (0,)}, 8, seed=seed)[0, 0] for seed in (0, 0, 1))
    assert first.inputs.shape == (2, 8, 16)
    assert torch.equal(first.inputs, again.inputs)
    assert not torch.equal(first.inputs, other.inputs)
    assert len(first.inputs[0].unique(dim=0)) == 8


def test_a_model_whose_queries_are_turned_has_no_rows():
    assert query_rows(_llama(), _tokens(2, 8), {0: (0,)}, 8, seed=0) == {}


def test_gradients_of_drawn_labels_make_the_true_fisher():
    """Against the exact Fisher of a tiny model, for the second head of its second layer."""
    model, tokens = _gpt2(vocab_size=6, n_embd=8), _tokens(3, 4, vocabulary=6)
    model.set_attn_implementation("eager")
    name, part = "transformer.h.1.attn.c_attn.weight", slice(4, 8)
    weight = model.get_parameter(name).detach().double()

    precise = copy.deepcopy(model).double()

    def exact(sequence):
        def logits(parameters):
            whole = torch.cat([weight[:, : part.start], parameters["head"].mT, weight[:, part.stop :]], dim=1)
            return torch.func.functional_call(precise, {name: whole}, (), {"input_ids": sequence[None]}).logits

        return model_fisher(logits, {"head": weight[:, part].mT})

    fishers = torch.stack([exact(sequence).flatten() for sequence in tokens])
    gradients = query_gradients(model, tokens, [(1, 1)], 4, draws=1500, seed=0)[1, 1]
    flat = gradients.gradients.double().flatten(2)
    estimated = (flat.mT @ flat / flat.shape[1]).flatten(1)
    for one, expected in zip(estimated, fishers, strict=True):
        assert float((one - expected).norm() / expected.norm()) < 0.15
        assert float(one @ expected / (one.norm() * expected.norm())) > 0.99

    rows = query_rows(model, tokens, {1: (1,)}, 4, seed=0)[1, 1]
    rows = QueryRows(rows.inputs.double(), rows.covariances.double())
    products = query_products(rows)
    found = true_cosines(QueryGradients(gradients.gradients.double(), gradients.deltas.double()), rows, products)
    length = off_diagonal_mean(fishers @ fishers.mT).sqrt()
    attention = off_diagonal_mean(fishers @ outer_products(rows).mean(1).flatten(1).mT)
    assert float(found[fisher.EXACT][0]) == pytest.approx(
        float(attention / (length * products.exact_square.sqrt())), rel=0.05
    )


SETTINGS = SimpleNamespace(seed=0, text=SimpleNamespace(batch_size=3))


def _subject(model, tokens, is_causal):
    return Subject(
        name="tiny", facts={}, model=model, tokens=tokens, words=[], tokenizer=None, data=None, is_causal=is_causal,
        source="",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("make", "is_causal", "said"),
    [
        (_gpt2, True, "labels drawn from its predictions (6 sequences"),
        (_bert, False, "no next token"),
        (_llama, True, "the parameter space (F1, F4) is left out"),
    ],
)
def test_the_section_says_numbers(make, is_causal, said):
    advanced = []
    section = fisher_page(measure(_subject(make(), _tokens(6, 16), is_causal), SETTINGS, advanced.append))
    assert (section.name, section.title) == ("fisher", "Fisher information")
    text = " ".join(section.findings)
    assert said in text
    assert "nan" not in text
    assert all(character in text for character in "[]")
    assert section.maps[0].layers == (0, 1)
    assert all(len(row) == 2 for found in section.maps for row in found.values)
    assert [picture.name for picture in section.pictures] == ["fisher_errors", "fisher_spectra"]
    for picture in section.pictures:
        assert picture.png.startswith(b"\x89PNG")
        assert picture.data.rows
    assert sum(advanced) > 0
    section.to_json()
    headings = [found.headings[0] for found in section.tables]
    assert ("of the true Fisher of W_Q" in headings) == (make is _gpt2)
    assert ("preconditioner" in headings) == (make is not _llama)


def test_the_section_of_two_sequences():
    section = fisher_page(measure(_subject(_gpt2(), _tokens(2, 8), True), SETTINGS, lambda count: None))
    assert "at least 3 sequences" in " ".join(section.findings)


def test_the_section_of_keys_that_are_all_the_same():
    """No pattern depends on W_Q then: its Fisher is 0, and nothing is divided by it in the words."""
    model = _gpt2()
    with torch.no_grad():
        for block in model.transformer.h:
            block.attn.c_attn.weight[:, 16:32] = 0.0
    section = fisher_page(measure(_subject(model, _tokens(4, 8), True), SETTINGS, lambda count: None))
    text = " ".join(section.findings)
    assert "the attention-Fisher of W_Q is 0" in text
    assert "nan" not in text
