"""The probe on small models: what it reads, that it disturbs nothing, and where a forward pass is not a plain one."""

import copy
import gc
import weakref

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from natattn.attention.layers import SITE_ATTRIBUTE, attach, attention_layers
from natattn.attention.probe import AttentionProbe
from natattn.attention.quantities import QUANTITIES
from natattn.attention.types.tempered import Tempered

ALL = tuple(QUANTITIES)


def _loss(model, tokens):
    return model(tokens, use_cache=False).logits.logsumexp(-1).sum()


def _assert_same(first: AttentionProbe, second: AttentionProbe, **tolerance):
    assert first.layers == second.layers
    for layer in first.layers:
        for name in first.statistics(layer).quantities:
            torch.testing.assert_close(first.statistics(layer)[name], second.statistics(layer)[name], **tolerance)
        assert torch.equal(first.statistics(layer).rows, second.statistics(layer).rows)


def test_observing_changes_nothing_and_detaching_leaves_no_trace(build, tokens):
    model = build()
    names = {name: set(vars(module)) for name, module in model.named_modules()}
    before = model(tokens).logits
    probe = AttentionProbe(model, quantities=ALL, exact=("maximum",))
    with probe.step(0):
        observed = model(tokens).logits
    probe.detach()
    assert torch.equal(before, observed)
    assert model.config._attn_implementation == "sdpa"
    assert {name: set(vars(module)) for name, module in model.named_modules()} == names


def test_probe_reads_the_energies_of_each_layer(gpt2, tokens):
    model = gpt2()
    captured = []

    def capture(module, inputs, output):
        query, key, _ = output.split(16, dim=2)
        shape = (3, 20, 2, 8)
        energy = query.view(shape).transpose(1, 2) @ key.view(shape).permute(0, 2, 3, 1) / 8**0.5
        captured.append(energy.detach())

    for block in model.transformer.h:
        block.attn.c_attn.register_forward_hook(capture)
    with AttentionProbe(model, row_count=None, quantities=ALL) as probe, probe.step(0):
        model(tokens)
    pairs = torch.ones(20, 20).tril().bool()
    for layer in (0, 1):
        energy = captured[layer]
        torch.testing.assert_close(probe.mean_absolute_energy(layer), energy[..., pairs].abs().mean())
        entropy = torch.special.entr(energy.masked_fill(~pairs, -torch.inf).softmax(-1)).sum(-1).mean((0, 2))
        torch.testing.assert_close(probe.statistics(layer)["entropy"], entropy)
        torch.testing.assert_close(probe.statistics(layer)["maximum"], energy[..., pairs].amax((0, 2)))


def test_exact_quantities_are_exact_among_sampled_ones(build, tokens):
    model = build()
    mask = torch.ones_like(tokens)
    mask[0, :7] = 0
    probes = {}
    for name, options in {
        "streaming": {"row_count": None},
        "sampled": {"row_count": 4, "exact": ("maximum", "standard_deviation")},
    }.items():
        with AttentionProbe(model, quantities=ALL, **options) as probe, probe.step(0):
            model(tokens, attention_mask=mask)
        probes[name] = probe
    exact, sampled = probes["streaming"].statistics(1), probes["sampled"].statistics(1)
    for name in ("maximum", "standard_deviation"):
        torch.testing.assert_close(sampled[name], exact[name])
        assert not sampled.is_biased(name)
    assert not torch.allclose(sampled["entropy"], exact["entropy"])
    assert torch.equal(sampled.pairs, exact.pairs)


def test_grouped_query_heads_are_observed(llama, tokens):
    model = llama()
    with AttentionProbe(model, row_count=None) as probe, probe.step(0):
        model(tokens)
    assert probe.statistics(0)["mean_absolute_energy"].shape == (4,)


@pytest.mark.parametrize("padded", [False, True])
def test_micro_batches_add_up_to_the_step(gpt2, tokens, padded):
    model = gpt2()
    mask = torch.ones_like(tokens)
    if padded:
        mask[1, :6] = 0
    with AttentionProbe(model, quantities=ALL, row_count=4) as whole, whole.step(3):
        model(tokens, attention_mask=mask)
    with AttentionProbe(model, quantities=ALL, row_count=4) as parts, parts.step(3):
        for sequence, sequence_mask in zip(tokens, mask, strict=True):
            model(sequence[None], attention_mask=sequence_mask[None])
    _assert_same(whole, parts, rtol=1e-4, atol=1e-5)
    assert torch.equal(whole.statistics(0).pairs, parts.statistics(0).pairs)


def test_a_mask_changed_in_place_is_counted_again(gpt2, tokens):
    model = gpt2()
    mask = torch.ones(3, 1, 20, 20).tril().bool()
    with AttentionProbe(model, row_count=None) as probe, probe.step(0):
        model(tokens, attention_mask=mask)
        first = probe.statistics(0).pairs.clone()
        mask[..., 0] = False
        model(tokens, attention_mask=mask)
    assert float(first) == 3 * 210
    assert float(probe.statistics(0).pairs) == 3 * 210 + 3 * 190


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpointed_layers_are_counted_once(build, tokens, use_reentrant):
    plain, checkpointed = build().train(), build().train()
    checkpointed.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    calls = []
    checkpointed.get_input_embeddings().weight.requires_grad_(True)
    layer = attention_layers(checkpointed)[0].module
    layer.register_forward_hook(lambda *_: calls.append(1))
    probes = []
    for model in (plain, checkpointed):
        with AttentionProbe(model, quantities=ALL, row_count=None) as probe, probe.step(0):
            for sequence in tokens.split(1):
                _loss(model, sequence).backward()
        probes.append(probe)
    assert len(calls) == 2 * len(tokens)  # really run twice
    _assert_same(*probes, rtol=0, atol=0)
    for first, second in zip(plain.parameters(), checkpointed.parameters(), strict=True):
        torch.testing.assert_close(first.grad, second.grad)


def test_compiled_model_does_not_break_the_graph(gpt2, tokens):
    model = gpt2()
    torch._dynamo.reset()
    with AttentionProbe(model, row_count=6, every=2, quantities=ALL, exact=("maximum",)) as probe:
        # fullgraph=True turns every graph break into an error, on skipped steps and on recorded ones.
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
        for step in range(1, 5):
            with probe.step(step):
                compiled(input_ids=tokens, use_cache=False).logits.sum().backward()
        graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        for step in range(5, 9):
            with probe.step(step):
                compiled(input_ids=tokens, use_cache=False).logits.sum().backward()
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs
        with AttentionProbe(model, row_count=6, quantities=ALL, exact=("maximum",)) as eager, eager.step(8):
            model(tokens)
        _assert_same(probe, eager)
    torch._dynamo.reset()


def test_compiled_and_checkpointed_layers_are_counted_once(gpt2, tokens):
    model = gpt2().train()
    torch._dynamo.reset()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    with AttentionProbe(model, row_count=6) as probe, probe.step(0):
        torch.compile(model, backend="aot_eager")(input_ids=tokens, use_cache=False).logits.sum().backward()
    model.gradient_checkpointing_disable()
    with AttentionProbe(model, row_count=6) as eager, eager.step(0):
        model(tokens)
    _assert_same(probe, eager)
    torch._dynamo.reset()


def test_statistics_stay_float32_under_autocast(gpt2, tokens):
    model = gpt2()
    with AttentionProbe(model, quantities=ALL) as probe, probe.step(0), torch.autocast("cpu", dtype=torch.bfloat16):
        model(tokens)
    with AttentionProbe(model, quantities=ALL) as full, full.step(0):
        model(tokens)
    assert all(probe.statistics(0)[name].dtype == torch.float32 for name in ALL)
    # The layer's own products are rounded, the statistics of them are not: what differs is the rounding of q and k.
    torch.testing.assert_close(probe.statistics(0)["entropy"], full.statistics(0)["entropy"], rtol=0.02, atol=0.02)


def test_steps_that_are_not_due_are_not_recorded(gpt2, tokens):
    model = gpt2()
    with AttentionProbe(model, every=2) as probe:
        with pytest.raises(RuntimeError, match="has not been observed yet"):
            probe.statistics(0)
        with probe.step(2):
            model(tokens)
        recorded = probe.statistics(0)
        with probe.step(3):
            model(tokens.flip(1))
        assert probe.statistics(0) is recorded
        model(tokens.flip(1))
        assert probe.statistics(0) is recorded


def test_layers_can_be_chosen(gpt2, tokens):
    model = gpt2()
    with AttentionProbe(model, layers=[1]) as probe, probe.step(0):
        model(tokens)
        assert probe.layers == [1]
        assert not hasattr(model.transformer.h[0].attn, SITE_ATTRIBUTE)
        with pytest.raises(KeyError, match="no layer 0"):
            probe.statistics(0)


def test_cross_attention_is_observed_on_request(gpt2, tokens):
    model = gpt2(add_cross_attention=True)
    encoder = torch.randn(3, 7, 16)
    with AttentionProbe(model) as probe:
        assert probe.layers == [0, 1]
    with AttentionProbe(model, row_count=None, cross_attention=True) as probe, probe.step(0):
        model(tokens, encoder_hidden_states=encoder)
    assert [(site.layer, site.name) for site in probe.sites] == [
        (0, "transformer.h.0.attn"), (2, "transformer.h.0.crossattention"),
        (1, "transformer.h.1.attn"), (3, "transformer.h.1.crossattention"),
    ]  # fmt: skip
    assert float(probe.statistics(3).pairs) == 3 * 20 * 7
    assert float(probe.statistics(1).pairs) == 3 * 210


def test_probes_nest(gpt2, tokens):
    model = gpt2()
    outer = AttentionProbe(model, row_count=2)
    with AttentionProbe(model, row_count=None, quantities=("entropy",)) as inner, inner.step(0):
        model(tokens)
    assert inner.statistics(0).quantities == ("entropy",)
    with outer.step(0):
        model(tokens)
    assert outer.statistics(0).quantities == ("mean_absolute_energy",)


def test_a_model_of_another_attention_type_keeps_it(gpt2, tokens):
    model = gpt2()
    attach(model, Tempered(2.0))
    before = model(tokens).logits
    with AttentionProbe(model, row_count=None, quantities=("mean_energy", "entropy")) as probe, probe.step(0):
        assert torch.equal(before, model(tokens).logits)
    assert model.config._attn_implementation == "tempered"
    plain = gpt2()
    with AttentionProbe(plain, row_count=None, quantities=("mean_energy", "entropy")) as reference, reference.step(0):
        plain(tokens)
    # In the first layer E is the same and the pattern is flatter.
    torch.testing.assert_close(probe.statistics(0)["mean_energy"], reference.statistics(0)["mean_energy"])
    assert bool((probe.statistics(0)["entropy"] > reference.statistics(0)["entropy"]).all())


def test_sampled_rows_leave_the_global_generator_alone(gpt2, tokens):
    model = gpt2()
    state = torch.get_rng_state()
    with AttentionProbe(model) as probe, probe.step(0):
        model(tokens)
    assert torch.equal(state, torch.get_rng_state())


def test_a_discarded_model_with_its_probe_is_freed_at_once(gpt2, tokens):
    model = gpt2()
    probe = AttentionProbe(model)
    with probe.step(0):
        model(tokens)
    weight = weakref.ref(model.transformer.h[0].attn.c_attn.weight)
    gc.disable()
    try:
        del model, probe
        assert weight() is None
    finally:
        gc.enable()


def test_a_model_is_copied_with_its_probe(gpt2, tokens):
    model = gpt2()
    with AttentionProbe(model) as probe, probe.step(0):
        model(tokens, attention_mask=torch.ones_like(tokens))
        duplicate = copy.deepcopy(model)
    assert torch.equal(duplicate(tokens).logits, model(tokens).logits)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quantities": ("energy",)}, "unknown attention quantity 'energy'"),
        ({"exact": ("maximum",)}, "exact='maximum' is not among the quantities"),
        ({"row_count": 0}, "row_count=0: must be at least 1"),
        ({"every": 0}, "every=0: must be at least 1"),
        ({"layers": [5]}, r"layers=\[5\]: the model has \[0, 1\]"),
    ],
)
def test_bad_options_are_refused(gpt2, options, message):
    model = gpt2()
    with pytest.raises(ValueError, match=message):
        AttentionProbe(model, **options)
    assert model.config._attn_implementation == "sdpa"


def _padded(pad_token: int) -> dict[str, torch.Tensor]:
    tokens = torch.randint(1, 30, (2, 9), generator=torch.Generator().manual_seed(3))
    mask = torch.ones(2, 9, dtype=torch.int64)
    mask[1, 6:] = 0
    return {"input_ids": tokens.masked_fill(mask == 0, pad_token), "attention_mask": mask}


@pytest.mark.parametrize("rows", [None, 9])
def test_padded_queries_enter_nothing(rows):
    torch.manual_seed(0)
    sizes = {"n_positions": 16, "n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": 30, "initializer_range": 0.5}
    model = GPT2LMHeadModel(GPT2Config(**sizes)).eval()
    names = ("mean_absolute_energy", "entropy", "attention_distance", "heat_capacity")
    found = []
    for pad_token in (0, 7):
        with AttentionProbe(model, quantities=names, row_count=rows) as probe:
            with probe.step(0):
                model(**_padded(pad_token))
            found.append([probe.statistics(1)[name] for name in names])
            assert float(probe.statistics(1).rows.sum()) == 15
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)
    # Nor do they without padding: each sequence alone, weighted by its pairs and rows, gives the same.
    batch, alone = _padded(0), []
    for tokens in (batch["input_ids"][:1], batch["input_ids"][1:, :6]):
        with AttentionProbe(model, quantities=names, row_count=rows) as probe, probe.step(0):
            model(input_ids=tokens)
            alone.append(probe.sites[1].recorded())
    for name, value in zip(names, found[0], strict=True):
        torch.testing.assert_close(value, (alone[0] + alone[1])[name])


def test_a_padded_batch_in_inference_mode():
    model = GPT2LMHeadModel(GPT2Config(n_positions=16, n_embd=16, n_layer=1, n_head=2, vocab_size=30)).eval()
    with AttentionProbe(model) as probe, torch.inference_mode(), probe.step(0):
        model(**_padded(0))
    assert float(probe.statistics(0).rows.sum()) == 15


def test_probes_detach_in_order_and_once():
    model = GPT2LMHeadModel(GPT2Config(n_positions=16, n_embd=16, n_layer=1, n_head=2, vocab_size=30))
    before = model.config._attn_implementation
    first = AttentionProbe(model)
    second = AttentionProbe(model)
    with pytest.raises(RuntimeError, match="detach that one first"):
        first.detach()
    second.detach()
    first.detach()
    with AttentionProbe(model) as third:
        first.detach()  # a second time: nothing
        with third.step(0):
            model(input_ids=torch.arange(8)[None])
        assert third.statistics(0)["mean_absolute_energy"].isfinite().all()
    assert model.config._attn_implementation == before
