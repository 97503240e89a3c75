"""Weight spectra of matrices whose eigenvalues are known."""

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from natattn.analysis.spectra import ATTENTION_ROLES, weight_spectra


@pytest.fixture
def model():
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=20, n_positions=16, n_embd=96, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0)
    return GPT2LMHeadModel(config)


def test_every_attention_matrix_once_and_its_eigenvalues(model):
    spectra = weight_spectra(model)
    assert [(s.layer, s.role) for s in spectra] == [(layer, role) for layer in (0, 1) for role in ATTENTION_ROLES]
    value = model.transformer.h[1].attn.c_attn.weight[:, 2 * 96 :].T.detach().double()
    expected = torch.linalg.eigvalsh(value @ value.T / 96).flip(0)
    np.testing.assert_allclose(spectra[6].eigenvalues, expected.numpy(), rtol=1e-6, atol=1e-12)
    assert spectra[6].stable_rank == pytest.approx(
        float(value.square().sum() / torch.linalg.matrix_norm(value, 2) ** 2)
    )


def test_a_matrix_made_with_a_tail_has_it_and_its_shuffled_entries_have_not(model):
    generator = np.random.default_rng(0)
    left, right = (np.linalg.qr(generator.normal(size=(96, 96)))[0] for _ in range(2))
    eigenvalues = (1 - generator.random(96)) ** (-1 / 1.0)  # density ∝ λ^(−2)
    matrix = left @ np.diag(np.sqrt(eigenvalues * 96)) @ right.T
    with torch.no_grad():
        model.transformer.h[0].attn.c_proj.weight.copy_(torch.from_numpy(matrix.T))
    (spectrum,) = [s for s in weight_spectra(model, replicas=20) if (s.layer, s.role) == (0, "output")]
    assert spectrum.law.fit.exponent == pytest.approx(2.0, abs=0.5)
    assert spectrum.law.p_value > 0.1
    assert spectrum.eigenvalues[0] / spectrum.eigenvalues[-1] > 20
    assert spectrum.shuffled.fit.exponent > spectrum.law.fit.exponent


def test_a_matrix_of_zeros_has_no_law(model):
    with torch.no_grad():
        model.transformer.h[0].attn.c_proj.weight.zero_()
    (spectrum,) = [s for s in weight_spectra(model) if (s.layer, s.role) == (0, "output")]
    assert spectrum.law.fit is None
    assert spectrum.stable_rank == 0.0
