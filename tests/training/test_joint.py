"""Several arms as one computation do what each does by itself: every optimizer, attention type and stabiliser."""

import contextlib

import pytest
import torch

from natattn.config.compose import compose, groups, plain_values
from natattn.errors import UserError
from natattn.stacked.arm import StackedArm
from natattn.training.arm import Arm
from natattn.training.build import build_arms, open_task
from natattn.training.settings import run_settings

SEEDS = 3
STEPS = 7  # two captures of factors, and one step between


@pytest.fixture(autouse=True)
def _own_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Newton–Schulz in the gradients' own precision: a kernel for many matrices may round bfloat16 otherwise."""
    monkeypatch.setattr(torch.Tensor, "bfloat16", lambda tensor: tensor)


def _arms(tiny, *overrides: str) -> list[Arm]:
    """The candidate of every seed, in float64, so that nothing but mistakes is seen."""
    arms = []
    for seed in range(SEEDS):
        composed = compose([*tiny, "reference=none", "probe.row_count=6", *overrides, f"seed={seed}"])
        settings = run_settings(plain_values(composed))
        found = build_arms(settings, open_task(settings, progress=False))
        found[-1].model.double()
        arms.append(found[-1])
    return arms


def _slices(step: int, seed: int, count: int = 2) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1000 * seed + step)
    return list(torch.randint(257, (4, 17), generator=generator).chunk(count))


def _alone(arms: list[Arm], steps: int = STEPS) -> list[list[tuple[float, float]]]:
    """(loss, gradient norm) of every arm and step."""
    results = []
    for seed, arm in enumerate(arms):
        results.append([])
        for step in range(steps):
            arm.at_step(step, steps)
            if step == steps - 1:
                arm.optimizer.measure_next_step()
            result = arm.train_step(_slices(step, seed), step, 1 - step / (2 * steps))
            results[-1].append((float(result.loss), float(result.gradient_norm)))
    return results


def _together(arms: list[Arm], steps: int = STEPS) -> list[list[tuple[float, float]]]:
    joint = StackedArm(arms)
    results: list[list[tuple[float, float]]] = [[] for _ in arms]
    for step in range(steps):
        for arm in arms:
            arm.at_step(step, steps)
            if step == steps - 1:
                arm.optimizer.measure_next_step()
        slices = [torch.cat(parts) for parts in zip(*(_slices(step, seed) for seed in range(SEEDS)), strict=True)]
        for found, result in zip(results, joint.train_step(slices, step, 1 - step / (2 * steps)), strict=True):
            found.append((float(result.loss), float(result.gradient_norm)))
    return results


def _flat(value, path: str = "") -> dict:
    """Every leaf of nested dictionaries and lists, by its path."""
    if isinstance(value, dict | list | tuple):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return {name: leaf for key, child in items for name, leaf in _flat(child, f"{path}/{key}").items()}
    return {path: value}


def _everything(arm: Arm) -> dict:
    """Weights, optimizer state, statistics and metrics."""
    probe = arm.probe.state_dict() if arm.probe is not None else {}
    parts = {"weights": arm.unique_tensors(), "state": arm.optimizer.state_dict(), "probe": probe}
    return _flat({**parts, "metrics": arm.optimizer.metrics()})


def _distance(first: dict, second: dict) -> dict[str, float]:
    """By name, the largest difference in units of the largest entry."""
    assert first.keys() == second.keys()
    result = {}
    for name, value in first.items():
        if isinstance(value, torch.Tensor | float):
            a, b = (torch.as_tensor(each).detach().double() for each in (value, second[name]))
            assert a.shape == b.shape, name
            result[name] = float((a - b).abs().max() / a.abs().max().clamp_min(1e-3)) if a.numel() else 0.0
        else:
            assert value == second[name], name
    return result


def _nudged(arms: list[Arm]) -> list[Arm]:
    """The same arms, their weights moved by a few roundings."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for arm in arms:
            for parameter in arm.model.parameters():
                noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
                parameter.mul_(1 + 4e-16 * noise)
    return arms


OPTIMIZERS = groups()["optim"]


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if "soap" not in name])
def test_every_optimizer_trains_stacked_seeds_as_it_trains_each_alone(name, tiny):
    """To 1e-9, or within the effect of perturbing the weights by rounding errors if that is larger."""
    options = [f"optim={name}", "train.clip_norm=0.5"]
    alone, together, nudged = _arms(tiny, *options), _arms(tiny, *options), _nudged(_arms(tiny, *options))
    expected, found, moved = _alone(alone), _together(together), _alone(nudged)
    assert max(norm for _, norm in expected[0]) > 0.5  # some gradients are clipped
    assert len({losses[0] for losses in expected}) == SEEDS
    for index, (first, second, third) in enumerate(zip(alone, together, nudged, strict=True)):
        tolerance = _distance(_everything(first), _everything(third))
        for entry, error in _distance(_everything(first), _everything(second)).items():
            rounded = "last_updates" in entry or "metrics" in entry  # these are measured in float32
            assert error <= (1e-6 if rounded else 1e-9) + 100 * tolerance[entry], (index, entry, error)
        for own, joint, other in zip(expected[index], found[index], moved[index], strict=True):
            slack = 1e-9 + 100 * max(abs(a - b) for a, b in zip(own, other, strict=True))
            assert own == pytest.approx(joint, abs=slack)


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if "soap" in name])
def test_soap_takes_the_same_step_from_the_same_gradients(name, tiny):
    """SOAP's eigenbases amplify rounding, so it is compared on given gradients."""
    alone, together = (_arms(tiny, f"optim={name}") for _ in range(2))
    joint = StackedArm(together)
    generator = torch.Generator().manual_seed(0)
    for step in range(STEPS):
        for seed, (first, second) in enumerate(zip(alone, together, strict=True)):
            for arm in (first, second):
                arm.model.train()
                with torch.no_grad(), arm.probe.step(step) if arm.probe else contextlib.nullcontext():
                    arm.model(_slices(step, seed)[0][:, :-1], use_cache=False)
        for parameter_name, stack in joint.model.stacks.items():
            stack.grad = torch.randn(stack.shape, generator=generator, dtype=stack.dtype)
            for arm, part in zip(alone, stack.grad.unbind(), strict=True):
                arm.model.get_parameter(parameter_name).grad = part.clone()
        for arm in alone:
            arm.optimizer.step()
        joint.optimizer.step()
    for first, second in zip(alone, together, strict=True):
        errors = _distance(_everything(first), _everything(second))
        assert max(errors.values()) <= 1e-9, max(errors, key=errors.__getitem__)


@pytest.mark.parametrize(
    "options",
    [
        ["model=natural_gradient"],
        ["model=tempered_linear"],
        ["model=tempered_per_head", "model.attention.temperature.values=[0.5,2]"],
        ["model=standard", "optim=newton_muon"],
        ["stabilisers=qk_norm"],
        ["stabilisers=softcap", "stabilisers.softcap=0.4"],
        ["stabilisers=qk_clip", "stabilisers.qk_clip=0.1", "size.initializer_range=0.3"],
        ["optim=aif", "optim.placebo=shuffled", "probe.every=2"],
        ["optim=natural_muon", "optim.placebo=constant"],
        ["train.clip_norm=null"],
    ],
    ids=" ".join,
)
def test_attention_types_stabilisers_and_placebos_are_each_arms_own(options, tiny):
    alone, together = (_arms(tiny, *options) for _ in range(2))
    expected, found = _alone(alone), _together(together)
    for own, joint in zip(expected, found, strict=True):
        assert own == [pytest.approx(each, abs=1e-9) for each in joint]
    for first, second in zip(alone, together, strict=True):
        assert max(_distance(_everything(first), _everything(second)).values()) <= 1e-9


def test_one_arm_that_is_not_finite_leaves_the_others_as_they_are(tiny):
    """And those go on in a joint arm without it."""
    alone, together = (_arms(tiny, "optim=natural_muon") for _ in range(2))
    expected = _alone(alone)
    joint, members = StackedArm(together), list(range(SEEDS))
    for step in range(STEPS):
        if step == 2:
            with torch.no_grad():
                together[1].model.transformer.h[0].mlp.c_fc.weight.fill_(float("nan"))
        if step == 4:
            joint.release()
            members = [0, 2]
            joint = StackedArm([together[index] for index in members])
        for index in members:
            if step == STEPS - 1:
                together[index].optimizer.measure_next_step()
        slices = [torch.cat(parts) for parts in zip(*(_slices(step, index) for index in members), strict=True)]
        results = joint.train_step(slices, step, 1 - step / (2 * STEPS))
        for index, result in zip(members, results, strict=True):
            if index == 1 and step >= 2:
                assert not result.loss.isfinite()
            else:
                assert float(result.loss) == pytest.approx(expected[index][step][0], abs=1e-9)
    for index in (0, 2):
        assert max(_distance(_everything(alone[index]), _everything(together[index])).values()) <= 1e-9


def test_an_arm_that_leaves_goes_on_by_itself(tiny):
    alone, together = (_arms(tiny, "optim=fisher_muon") for _ in range(2))
    joint = StackedArm(together)
    for step in range(STEPS):
        slices = [torch.cat(parts) for parts in zip(*(_slices(step, seed) for seed in range(SEEDS)), strict=True)]
        if step < 3:
            joint.train_step(slices, step, 1.0)
        if step == 2:
            joint.release()
        for seed, arm in enumerate(alone):
            arm.train_step(_slices(step, seed), step, 1.0)
            if step > 2:
                together[seed].train_step(_slices(step, seed), step, 1.0)
    for first, second in zip(alone, together, strict=True):
        assert max(_distance(_everything(first), _everything(second)).values()) <= 1e-9
        assert second.stopwatch.read() > 0


def test_time_is_shared_equally(tiny):
    arms = _arms(tiny)
    _together(arms)
    shares = {arm.stopwatch.read() for arm in arms}
    assert len(shares) == 1
    assert 0 < arms[0].optimizer_stopwatch.read() < shares.pop()


def test_bfloat16_arithmetic_is_that_of_each_alone(tiny):
    losses = []
    for train in (_alone, _together):
        arms = _arms(tiny, "precision=bf16")
        for arm in arms:
            arm.model.float()
        losses.append([loss for arm in train(arms) for loss, _ in arm])
    assert losses[0] == pytest.approx(losses[1], abs=0.02)
    assert losses[0] != pytest.approx([loss for arm in _alone(_arms(tiny)) for loss, _ in arm], abs=1e-5)


def test_what_cannot_be_stacked_is_refused(tiny):
    with pytest.raises(UserError, match=r"seeds: .* cannot be stacked"):
        StackedArm(_arms(tiny, "model=published"))
    with pytest.raises(UserError, match="seeds: a model with dropout"):
        StackedArm(_arms(tiny, "model.dropout=0.1"))
    shallow = _arms(tiny, "size.n_layer=1")
    with pytest.raises(UserError, match="different shapes"):
        StackedArm([_arms(tiny)[0], shallow[0]])
