"""Stacked models: losses and gradients of each, views that stay views, and the loss that is its own backward pass."""

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from natattn.stacked.loss import mean_cross_entropies
from natattn.stacked.model import StackedGPT2

COUNT, VOCABULARY = 3, 11


def _models(**options) -> list[GPT2LMHeadModel]:
    config = {"n_positions": 8, "n_embd": 12, "n_layer": 2, "n_head": 3, "vocab_size": VOCABULARY, **options}
    dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "bos_token_id": 0, "eos_token_id": 0}
    torch.manual_seed(0)
    return [GPT2LMHeadModel(GPT2Config(initializer_range=0.3, **config, **dropout)).double() for _ in range(COUNT)]


def _tokens(batch: int = 2) -> torch.Tensor:
    return torch.randint(VOCABULARY, (COUNT * batch, 7), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("tied", [True, False])
def test_losses_and_gradients_are_those_of_every_model(tied):
    models, tokens = _models(tie_word_embeddings=tied), _tokens()
    expected = []
    for model, own in zip(models, tokens.chunk(COUNT), strict=True):
        logits = model(own[:, :-1], use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), own[:, 1:].flatten())
        (0.5 * loss).backward()
        gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
        expected.append((0.5 * loss.detach(), gradients))
        model.zero_grad()
    stacked = StackedGPT2(models)
    losses = stacked.backward(tokens, 0.5)
    for number, (loss, gradients) in enumerate(expected):
        torch.testing.assert_close(losses[number], loss, atol=1e-12, rtol=0)
        for name, stack in stacked.stacks.items():
            torch.testing.assert_close(stack.grad[number], gradients[name], atol=1e-12, rtol=0)
    assert ("lm_head.weight" in stacked.stacks) != tied
    stacked.backward(tokens, 0.5)  # gradients add up
    name = "transformer.wte.weight"
    torch.testing.assert_close(stacked.stacks[name].grad[1], 2 * expected[1][1][name], atol=1e-12, rtol=0)


def test_models_are_views_until_they_are_released():
    models = _models()
    before = [model.transformer.wte.weight.detach().clone() for model in models]
    stacked = StackedGPT2(models)
    with torch.no_grad():
        stacked.stacks["transformer.wte.weight"][1] += 1
    torch.testing.assert_close(models[1].transformer.wte.weight.detach(), before[1] + 1)
    torch.testing.assert_close(models[1].lm_head.weight, models[1].transformer.wte.weight)
    torch.testing.assert_close(models[0].transformer.wte.weight.detach(), before[0])
    stacked.release()
    with torch.no_grad():
        stacked.stacks["transformer.wte.weight"].zero_()
    torch.testing.assert_close(models[1].transformer.wte.weight.detach(), before[1] + 1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_loss_has_the_gradient_of_any_combination(dtype):
    generator = torch.Generator().manual_seed(2)
    hidden = torch.randn(COUNT, 5, 4, generator=generator, dtype=dtype).mul_(20).requires_grad_()
    weight = torch.randn(COUNT, VOCABULARY, 4, generator=generator, dtype=dtype).requires_grad_()
    labels = torch.randint(VOCABULARY, (COUNT, 5), generator=generator)
    factors = torch.tensor([0.0, 1.0, -3.0], dtype=dtype)
    losses = mean_cross_entropies(hidden, weight, labels, 0.25)
    gradients = torch.autograd.grad((factors * losses).sum(), (hidden, weight))
    logits = (hidden @ weight.mT).mT
    plain = 0.25 * torch.nn.functional.cross_entropy(logits, labels, reduction="none").mean(1)
    tolerance = {"atol": 1e-10, "rtol": 1e-10} if dtype == torch.float64 else {"atol": 1e-4, "rtol": 1e-4}
    torch.testing.assert_close(losses, plain, **tolerance)
    for found, wanted in zip(gradients, torch.autograd.grad((factors * plain).sum(), (hidden, weight)), strict=True):
        torch.testing.assert_close(found, wanted, **tolerance)


def test_models_of_different_kinds_are_refused():
    models = _models()
    with pytest.raises(ValueError, match="different shapes"):
        StackedGPT2([models[0], _models(n_embd=6)[0]])
    models[0].transformer.drop.p = 0.1
    with pytest.raises(ValueError, match="dropout"):
        StackedGPT2(models)
