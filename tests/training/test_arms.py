"""Arms of one run: equal at the start, fed alike, and what makes them differ."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from natattn.attention.types.natural import NaturalAttention
from natattn.config.compose import groups
from natattn.data import TokenSplit
from natattn.errors import UserError
from natattn.training.arm import Arm, identical, weights_hash
from natattn.training.build import build_arms, open_task
from natattn.training.evaluate import attention_metrics, split_metrics
from natattn.training.guards import causality_leak, check_causality, check_guards, check_label_shift
from natattn.training.settings import compose_run


def _arms(tiny, *overrides) -> tuple[list[Arm], int]:
    settings = compose_run([*tiny, *overrides])
    task = open_task(settings, progress=False)
    return build_arms(settings, task), task.context


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randint(256, (4, 17), generator=torch.Generator().manual_seed(0))


def test_arms_start_from_the_same_weights_and_give_the_same_logits(tiny, tokens):
    (standard, natural), context = _arms(tiny)
    assert (standard.name, natural.name, context) == ("standard", "natural", 16)
    assert weights_hash(standard.model) == weights_hash(natural.model)
    with torch.no_grad():
        difference = standard.model(tokens[:, :-1]).logits - natural.model(tokens[:, :-1]).logits
    assert float(difference.abs().max()) <= 1e-5
    assert standard.model.config._attn_implementation == "sdpa"
    assert natural.model.config._attn_implementation == "natural"


def test_initial_weights_depend_on_the_seed_alone(tiny):
    torch.manual_seed(17)
    first = weights_hash(_arms(tiny)[0][0].model)
    assert first == weights_hash(_arms(tiny, "reference=none")[0][0].model)
    assert first != weights_hash(_arms(tiny, "seed=1")[0][0].model)


def test_candidate_is_alone_without_a_reference(tiny):
    arms, _ = _arms(tiny, "reference=none")
    assert [arm.name for arm in arms] == ["natural"]


def test_standard_candidate_has_a_name_of_its_own(tiny):
    arms, _ = _arms(tiny, "model=standard", "optim=muon")
    assert [arm.name for arm in arms] == ["standard", "standard_muon"]


@pytest.mark.parametrize(
    "overrides",
    [
        ("optim=aif",),
        ("optim=natural_muon", "train.accumulation_steps=2"),
        ("model=published",),
        ("model=natural_gradient",),
        ("model.dropout=0.1",),
        ("precision=bf16",),
        ("stabilisers.qk_clip=0.01",),
    ],
)
def test_activation_checkpointing_keeps_less_and_changes_nothing(tiny, tokens, overrides):
    found = []
    for flag in ("false", "true"):
        arms, _ = _arms(tiny, *overrides, f"train.activation_checkpointing={flag}")
        kept = 0

        def count(tensor):
            nonlocal kept
            kept += tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            results = [arm.train_step([tokens[:2], tokens[2:]], 0, 1.0) for arm in arms]
        found.append(([result.loss for result in results], [weights_hash(arm.model) for arm in arms], kept))
    assert found[0][:2] == found[1][:2]
    assert found[1][2] < found[0][2]


def test_dropout_is_paired_between_arms(tiny, tokens):
    (standard, natural), _ = _arms(tiny, "model.dropout=0.3", "optim=adamw")
    results = [[arm.train_step([tokens], step, 1.0).loss for step in range(3)] for arm in (standard, natural)]
    assert results[0] == results[1]
    assert identical(standard.model, natural.model)


def test_dropout_differs_between_steps(tiny, tokens):
    (arm, _), _ = _arms(tiny, "model.dropout=0.5")
    losses = {float(arm.train_step([tokens], step, 0.0).loss) for step in range(3)}
    assert len(losses) == 3


def test_accumulation_slices_give_the_same_step(tiny, tokens):
    whole, parts = (_arms(tiny, "probe.row_count=null")[0][1] for _ in range(2))
    first = whole.train_step([tokens], 0, 1.0)
    second = parts.train_step(list(tokens.split(1)), 0, 1.0)
    torch.testing.assert_close(first.loss, second.loss)
    torch.testing.assert_close(first.gradient_norm, second.gradient_norm)
    for a, b in zip(whole.model.parameters(), parts.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=2e-4, rtol=1e-3)


def test_clipping_bounds_the_gradient(tiny, tokens):
    free, clipped = _arms(tiny, "train.clip_norm=null")[0][0], _arms(tiny, "train.clip_norm=1e-6")[0][0]
    seen = []
    for arm in (free, clipped):
        step = arm.optimizer.step
        arm.optimizer.step = lambda arm=arm, step=step: (  # type: ignore[method-assign]
            seen.append(torch.cat([p.grad.flatten() for p in arm.model.parameters()]).norm()), step()
        )  # fmt: skip
        norm = arm.train_step([tokens], 0, 1.0).gradient_norm
        assert float(norm) > 1e-3
    assert float(seen[0]) > 1e-3
    assert float(seen[1]) <= 1.01e-6


def test_learning_rate_follows_the_factor(tiny, tokens):
    arm = _arms(tiny)[0][0]
    rate = arm.base_learning_rate
    arm.train_step([tokens], 0, 0.25)
    assert arm.optimizer.param_groups[0]["lr"] == pytest.approx(0.25 * rate)
    arm.train_step([tokens], 1, 1.0)
    assert arm.optimizer.param_groups[0]["lr"] == pytest.approx(rate)


def test_loss_is_the_shifted_cross_entropy(tiny, tokens):
    arm = _arms(tiny)[0][0]
    arm.model.eval()
    with torch.no_grad():
        short = tokens[:, :16]
        expected = arm.model(input_ids=short, labels=short).loss
        torch.testing.assert_close(arm.loss(short), expected)


def test_the_loss_of_a_split_covers_everything_once_whatever_the_batch(tiny):
    arm = _arms(tiny)[0][0]
    tokens = np.random.default_rng(0).integers(0, 256, 203).astype(np.uint16)
    split = TokenSplit(tokens, byte_count=203, document_count=1)
    arm.task = replace(arm.task, corpus=replace(arm.task.corpus, validation=split))
    losses = [split_metrics(arm, "validation", batch_size=size)["validation/loss"] for size in (1, 5, 64)]
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-6)


def test_attention_metrics_are_there_for_unobserved_models_too(tiny):
    (standard, natural), _ = _arms(tiny)
    probe_inputs = standard.task.probe_inputs(torch.device("cpu"))
    metrics = [attention_metrics(arm, probe_inputs) for arm in (standard, natural)]
    assert metrics[0] == pytest.approx(metrics[1])
    quantities = ("mean_absolute_energy", "maximum", "entropy", "heat_capacity")
    assert set(metrics[0]) == {f"attention/layer_{i}/{name}" for i in (0, 1) for name in quantities}
    assert standard.model.config._attn_implementation == "sdpa"
    assert natural.probe is not None


def test_pattern_divergence_is_from_the_evaluation_before(tiny):
    (arm, _), _ = _arms(tiny)
    probe_inputs = arm.task.probe_inputs(torch.device("cpu"))
    names = [f"attention/layer_{layer}/pattern_divergence" for layer in (0, 1)]
    first = attention_metrics(arm, probe_inputs)
    assert not any(name in first for name in names)
    assert [attention_metrics(arm, probe_inputs)[name] for name in names] == [0.0, 0.0]
    with torch.no_grad():
        arm.model.transformer.h[1].attn.c_attn.weight.mul_(5.0)
    moved = attention_metrics(arm, probe_inputs)
    assert moved[names[0]] == 0.0
    assert 0 < moved[names[1]] < np.log(2)


def test_guards_pass_causal_arms_and_catch_a_leak(tiny):
    (standard, natural), context = _arms(tiny)
    for arm in (standard, natural):
        check_causality(arm, context, 257)
        check_label_shift(arm, 257)
    for block in natural.model.transformer.h:
        block.attn.is_causal = False
    assert causality_leak(natural, context, 257) > 1e-4
    with pytest.raises(Exception, match="arm natural: a logit changes"):
        check_causality(natural, context, 257)
    with torch.no_grad():  # a small leak of small logits is as much of a leak
        natural.model.transformer.wte.weight.mul_(1e-5)
        natural.model.transformer.wpe.weight.mul_(1e-5)
    with pytest.raises(Exception, match="arm natural: a logit changes"):
        check_causality(natural, context, 257)
    with torch.no_grad():
        natural.model.transformer.wte.weight.fill_(float("nan"))
    with pytest.raises(Exception, match="arm natural: its logits are not finite"):
        check_causality(natural, context, 257)


def test_a_leak_from_the_middle_alone_is_seen(tiny, monkeypatch):
    (arm, _), context = _arms(tiny)

    def logits(_, tokens):
        found = torch.randn(1, context, 257, generator=torch.Generator().manual_seed(0))
        found[:, 0] += tokens[0, context // 2] % 2
        return found

    monkeypatch.setattr("natattn.training.guards._logits", logits)
    assert causality_leak(arm, context, 257) > 0.1


def test_guard_catches_labels_that_are_shifted_twice(tiny, monkeypatch):
    arm = _arms(tiny)[0][0]
    shifted_once = Arm.loss
    monkeypatch.setattr(Arm, "loss", lambda self, tokens: shifted_once(self, torch.roll(tokens, -1, 1)))
    with pytest.raises(Exception, match="shifted once"):
        check_label_shift(arm, 257)


@pytest.mark.parametrize("kind", ["inverse_sqrt", "linear", "cosine"])
def test_a_scheduled_temperature_follows_the_step(kind, tiny, tokens):
    (standard, tempered), _ = _arms(tiny, f"model=tempered_{kind}")
    with torch.no_grad():
        results = []
        for step in (0, 3, 9):
            tempered.at_step(step, 10)
            results.append(float(tempered.model.eval()(tokens[:, :-1]).logits.sum()))
    assert len(set(results)) == 3
    assert standard.tempered is None


def test_every_attention_type_learns_and_the_untempered_start_where_the_standard_does(tiny, tokens):
    for name in groups()["model"]:
        if name in ("standard", "published"):  # published begins with weights of its own
            continue
        values = ["model.attention.temperature.values=[1,1]"] if name == "tempered_per_head" else []
        arms, _ = _arms(tiny, f"model={name}", *values)
        losses = [[float(arm.train_step([tokens], step, 1.0).loss) for step in range(2)] for arm in arms]
        if not name.startswith("tempered_"):
            assert losses[0][0] == pytest.approx(losses[1][0], abs=1e-5), name
        assert losses[1][1] < losses[1][0], name


@pytest.mark.parametrize("option", ["qk_norm", "softcap", "qk_clip"])
def test_stabilisers_are_on_both_arms_and_keep_what_is_compared(option, tiny, tokens):
    bound = {"qk_norm": "true", "softcap": "0.4", "qk_clip": "0.4"}[option]
    arms, _ = _arms(tiny, f"stabilisers={option}", f"stabilisers.{option}={bound}", "size.initializer_range=0.5")
    plain, _ = _arms(tiny, "size.initializer_range=0.5")
    losses = [float(arm.train_step([tokens], 0, 0.0).loss) for arm in arms]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    unbounded = float(plain[0].train_step([tokens], 0, 0.0).loss)
    assert (losses[0] == pytest.approx(unbounded, abs=1e-5)) == (option == "qk_clip")
    largest = {"qk_norm": 8**0.5, "softcap": 0.4, "qk_clip": 0.4}[option]
    for arm in arms:
        metrics = attention_metrics(arm, {"input_ids": tokens[:, :-1]})
        assert all(v <= largest * 1.001 for name, v in metrics.items() if name.endswith("/maximum")), metrics
    before = attention_metrics(plain[0], {"input_ids": tokens[:, :-1]})
    assert max(v for name, v in before.items() if name.endswith("/maximum")) > largest


def test_temperatures_must_be_as_many_as_heads(tiny):
    with pytest.raises(UserError, match=r"temperature\.values: 3 temperatures for 2 heads"):
        _arms(tiny, "model=tempered_per_head", "model.attention.temperature.values=[1,2,3]")


def test_critical_temperatures_are_those_of_the_width(tiny, tokens):
    exponent = -1.0
    arms, _ = _arms(tiny, "model=tempered_critical", f"model.attention.temperature.exponents={exponent}")
    model = arms[1].model
    temperature = (model.config.hidden_size / 768) ** -exponent
    same, _ = _arms(tiny, "model=tempered", f"model.attention.temperature.value={temperature}")
    losses = [float(found[1].train_step([tokens], 0, 0.0).loss) for found in (arms, same)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    with pytest.raises(UserError, match=r"temperature\.exponents: 3 exponents for 2 heads"):
        _arms(tiny, "model=tempered_critical", "model.attention.temperature.exponents=[1,2,3]")


def test_an_optimizer_that_does_not_fit_the_model_is_refused(tiny):
    for override, said in {
        "optim.directions.query.head_exponents=[1,2,3]": "head_exponents: 3 exponents for 2 heads",
        "+optim.directions.mlp={kind: attention_fisher, betas: [0.9, 0.99], eps: 1e-8, form: inverse, damping: 0.3, "
        "refresh_every: 10, blend: null, levels: null, head_exponents: null}": "no attention factors",
    }.items():
        with pytest.raises(UserError, match=said):
            _arms(tiny, "model=natural", "optim=critical", override)
    with pytest.raises(UserError, match=r"per_head: the output matrices .* are not made of heads"):
        _arms(tiny, "model=natural", "optim=whitened_muon", "optim.directions.hidden.per_head=true")


def test_only_the_published_model_may_leak_and_the_leak_is_named(tiny):
    arms, _ = _arms(tiny, "model=published")
    published = compose_run([*tiny, "model=published"]).model.attention
    assert [arm.task.label_shift for arm in arms] == [2, 2]
    assert check_guards(arms, attention=published) == ["published"]
    with pytest.raises(UserError):
        check_guards(arms, attention=NaturalAttention(kind="natural"))
    causal, _ = _arms(tiny, "model=published", "model.attention.causal=true")
    assert check_guards(causal, attention=published) == []


def test_published_mask_saturates_the_energy_factor(tiny, tokens):
    for saturate, expected in ((True, 2.0), (False, None)):
        options = ["model.attention.causal=true", f"model.attention.masked_energies_saturate={saturate}"]
        (_, arm), _ = _arms(tiny, "model=published", *options)
        arm.train_step([tokens], 0, 1.0)
        factors = [float(factor) for factor in arm.optimizer.energy_factors().values()]
        assert factors == [2.0, 2.0] if expected else all(1 < factor < 1.5 for factor in factors)
