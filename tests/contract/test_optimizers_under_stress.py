"""Every optimizer on unusual models and in unusual situations: finite weights or a clear error."""

import copy

import pytest
import torch
from trained import Trained, build_model, loss_of, settings_of
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    OPTConfig,
    OPTForCausalLM,
    ViTConfig,
    ViTForImageClassification,
)

from natattn.fisher import probe as fisher_probe
from natattn.optim.matrix import key_of

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}


def bert_masked():
    model = BertForMaskedLM(BertConfig(vocab_size=30, max_position_embeddings=16, **SMALL))
    tokens = torch.randint(30, (2, 10), generator=torch.Generator().manual_seed(0))
    return model, {"input_ids": tokens, "labels": tokens}


def bert_classifier():
    model = BertForSequenceClassification(BertConfig(vocab_size=30, max_position_embeddings=16, **SMALL))
    tokens = torch.randint(30, (2, 10), generator=torch.Generator().manual_seed(0))
    return model, {"input_ids": tokens, "labels": torch.tensor([0, 1])}


def vit_classifier():
    model = ViTForImageClassification(ViTConfig(image_size=8, patch_size=4, num_channels=1, num_labels=3, **SMALL))
    pixels = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    return model, {"pixel_values": pixels, "labels": torch.tensor([0, 2])}


def gpt2_with_cross_attention():
    config = GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=30, n_positions=16, add_cross_attention=True,
                        bos_token_id=0, eos_token_id=0)  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(30, (2, 10), generator=generator)
    states = torch.randn(2, 7, 16, generator=generator)
    return GPT2LMHeadModel(config), {"input_ids": tokens, "labels": tokens, "encoder_hidden_states": states}


def opt_with_layer_drop():
    config = OPTConfig(vocab_size=30, hidden_size=16, ffn_dim=24, num_hidden_layers=3, num_attention_heads=2,
                       max_position_embeddings=16, layerdrop=0.5, word_embed_proj_dim=16, pad_token_id=1)  # fmt: skip
    tokens = torch.randint(3, 30, (2, 10), generator=torch.Generator().manual_seed(0))
    return OPTForCausalLM(config), {"input_ids": tokens, "labels": tokens, "use_cache": False}


def finite(model) -> bool:
    return all(bool(parameter.isfinite().all()) for parameter in model.parameters())


def steps(trained: Trained, inputs, count: int) -> list[float]:
    losses = []
    for step in range(count):
        trained.optimizer.zero_grad()
        with trained.observed(step):
            loss = trained.model(**inputs).loss
            loss.backward()
        trained.optimizer.measure_next_step()
        trained.optimizer.step()
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.parametrize(
    "build", [bert_masked, bert_classifier, vit_classifier, gpt2_with_cross_attention], ids=lambda build: build.__name__
)
def test_encoders_vision_and_cross_attention(optimizer_name, build):
    torch.manual_seed(0)
    model, inputs = build()
    trained = Trained(optimizer_name, model=model.train())
    losses = steps(trained, inputs, 12)
    assert min(losses[1:]) < losses[0]
    assert finite(model)
    assert all(torch.isfinite(torch.tensor(value)) for value in trained.optimizer.metrics().values())


def test_layers_that_a_step_does_not_reach(optimizer_name):
    model, inputs = opt_with_layer_drop()
    trained = Trained(optimizer_name, model=model.train())
    torch.manual_seed(2)  # drops each layer in some of the steps, and never all in one
    steps(trained, inputs, 6)
    assert finite(model)
    trained.optimizer.metrics()


def test_a_layer_in_evaluation_mode_has_no_metric(optimizer_name):
    model = build_model()
    model.transformer.h[0].eval()
    trained = Trained(optimizer_name, model=model)
    trained.train(range(12))
    assert finite(model)


def test_zero_gradients_for_long(optimizer_name):
    trained = Trained(optimizer_name)
    trained.train(range(2))
    with trained.observed(2):
        loss_of(trained.model, 2).backward()
    for parameter in trained.model.parameters():
        parameter.grad.zero_()
    for _ in range(1300):  # 0.95^1300 of the momentum is no float32 any more
        trained.optimizer.step()
    assert finite(trained.model)


@pytest.mark.parametrize("bad_captures", [1, 3])
def test_factors_that_are_not_finite(optimizer_name, bad_captures, monkeypatch):
    true_factors, true_outer, calls = fisher_probe.kronecker_factors, fisher_probe._mean_outer_product, []

    def spoiled(*arguments, **options):
        calls.append(1)
        return {name: factor * torch.nan for name, factor in true_factors(*arguments, **options).items()}

    monkeypatch.setattr(fisher_probe, "kronecker_factors", spoiled)
    monkeypatch.setattr(fisher_probe, "_mean_outer_product", lambda rows: true_outer(rows) * torch.nan)
    trained = Trained(optimizer_name)
    first = 5 * bad_captures - 3  # captures are made on every fifth step
    trained.train(range(first))
    trained.optimizer.metrics()
    monkeypatch.setattr(fisher_probe, "kronecker_factors", true_factors)
    monkeypatch.setattr(fisher_probe, "_mean_outer_product", true_outer)
    trained.train(range(first, first + 15))
    assert finite(trained.model)
    metrics = trained.optimizer.metrics()
    reads_factors = trained.settings.factors is not None
    assert (metrics.get("failed_decompositions", 0) > 0) == reads_factors


def test_a_copy_of_the_model_does_not_reach_its_probe(optimizer_name):
    alone, watched = Trained(optimizer_name), Trained(optimizer_name)
    losses = [alone.train(range(12)), []]
    for step in range(12):
        with watched.observed(step):
            copied = copy.deepcopy(watched.model).train()
            with torch.no_grad():
                loss_of(copied, 100 + step)
            loss = loss_of(watched.model, step)
            loss.backward()
        losses[1].append(float(loss.detach()))
        watched.optimizer.step()
        watched.optimizer.zero_grad()
    assert losses[0] == losses[1]


@pytest.mark.parametrize("role", [None, "mlp", "key", "vector"])
@pytest.mark.parametrize("shape", [(4,), (4, 6), (2, 4, 6)], ids=str)
def test_added_parameters_are_stepped_or_refused(optimizer_name, role, shape):
    trained = Trained(optimizer_name)
    added = torch.nn.Parameter(torch.ones(shape))
    group = {"params": [added]} | ({} if role is None else {"role": role})
    kind = trained.settings.directions[key_of(trained.settings.directions, role or "vector")].kind
    elementwise = trained.optimizer.directions[key_of(trained.optimizer.directions, role or "vector")].elementwise
    # What reads factors needs a layer or module that a lone parameter has not; the others of them need a matrix.
    if kind in ("whitened", "attention_fisher") or not (elementwise or len(shape) == 2):
        groups = len(trained.optimizer.param_groups)
        with pytest.raises(ValueError, match=r"parameters|per_head"):
            trained.optimizer.add_param_group(group)
        assert len(trained.optimizer.param_groups) == groups
        return
    trained.optimizer.add_param_group(group)
    if len(shape) != 2:
        assert trained.optimizer.param_groups[-1]["weight_decay"] == 0
    trained.backward(0)
    added.grad = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    trained.optimizer.step()
    trained.optimizer.step()  # SOAP's first step only starts its factors
    assert bool((added != 1).any())


@pytest.mark.parametrize("kind", ["soap", "orthogonal", "whitened"])
@pytest.mark.parametrize("role", ["vector", "embedding"])
def test_directions_for_matrices_refuse_other_parameters(kind, role):
    source = {"soap": "soap", "orthogonal": "muon", "whitened": "newton_muon"}[kind]
    settings = settings_of(source, f"+optim.directions.{role}=${{optim.directions.hidden}}")
    model = build_model()
    if role == "embedding" and kind != "whitened":
        settings.build(model)  # an embedding is a matrix
        return
    with pytest.raises(ValueError, match=r"dimensions; this direction is for matrices|no inputs to observe"):
        settings.build(model, settings.build_probe(model))
