"""Every configuration that is let through can be built, and takes a step with a finite loss and finite weights."""

from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st
from property_tools import TRIED, examples, message_of

from natattn.config.compose import compose, plain_values, train_groups
from natattn.errors import UserError
from natattn.tasks.base import BatchSlice
from natattn.training.build import build_arms, open_task
from natattn.training.guards import check_guards
from natattn.training.run_folder import flatten
from natattn.training.settings import RunSettings, compose_run

GROUPS = train_groups()
NUMBERS = ("learning_rate", "weight_decay", "damping", "momentum", "eps", "energy_scale", "decay", "betas", "initial")


def options(group: str, *left_out: str) -> st.SearchStrategy[str]:
    return st.sampled_from([option for option in GROUPS[group] if option not in left_out])


@st.composite
def tasks(draw: st.DrawFn) -> list[str]:
    """A task with data that need no network, in little."""
    task = draw(st.sampled_from(("language", "language", "vision", "multimodal")))
    if task == "vision":
        return ["task=vision", "data=digits", "data.image_size=8", "task.patch_size=4", "data.shift=1"]
    if task == "multimodal":
        scenes = ["data.train_pairs=24", "data.validation_galleries=1", "data.test_galleries=0"]
        return ["task=multimodal", "data=digit_scenes", *scenes, f"size.context={draw(st.sampled_from((32, 48)))}"]
    tokenizer = draw(st.sampled_from((["tokenizer=byte"], ["tokenizer=bpe", "tokenizer.vocab_size=270"])))
    tokens = ["data.train_tokens=600", "data.validation_tokens=150", f"data.test_tokens={draw(st.integers(0, 1)) * 90}"]
    packing = draw(
        st.sampled_from((["packing=stream"], ["packing=lines", "packing.lines=9", "packing.line_tokens=11"]))
    )
    context = 11 if packing[0] == "packing=lines" else draw(st.integers(2, 12))
    return ["data=grammar", f"data.seed={draw(st.integers(-9, 9))}", *tokens, *tokenizer, *packing,
            f"size.context={context}"]  # fmt: skip


@st.composite
def configurations(draw: st.DrawFn) -> list[str]:
    """Overrides over the groups of conf/, and numbers within the ranges of their schemas."""
    task, heads = draw(tasks()), draw(st.integers(1, 2))
    accumulation = 1 if "task=multimodal" in task else draw(st.integers(1, 2))
    model = draw(options("model", *(["published"] if task[0].startswith("task=") else [])))
    # Most other stabilisers do not go with a temperature, and none with the published blocks.
    stabilisers = {"tempered": ("none", "qk_clip"), "published": ("none",)}.get(
        model.partition("_")[0], GROUPS["stabilisers"]
    )
    overrides = [
        *task,
        f"model={model}",
        *([f"model.attention.temperature.values={[0.5, 2.0][:heads]}"] if model == "tempered_per_head" else []),
        f"optim={draw(options('optim'))}",
        f"reference={draw(options('reference'))}",
        f"stabilisers={draw(st.sampled_from(stabilisers))}",
        f"schedule={draw(options('schedule'))}",
        f"precision={draw(options('precision'))}",
        "tracker=off",
        f"size.n_layer={draw(st.integers(1, 2))}",
        f"size.n_head={heads}",
        f"size.n_embd={heads * draw(st.sampled_from((4, 6, 8)))}",
        f"size.n_inner={draw(st.sampled_from(('null', '5', '16')))}",
        f"size.initializer_range={draw(st.floats(1e-3, 0.3))}",
        f"model.dropout={draw(st.sampled_from((0, 0.1, 0.5)))}",
        f"train.batch_size={accumulation * draw(st.integers(2, 3))}",
        f"train.accumulation_steps={accumulation}",
        f"train.sampling={draw(st.sampled_from(('random', 'epochs')))}",
        f"train.clip_norm={draw(st.sampled_from(('null', '1e-3', '1.0', '1e9')))}",
        f"train.activation_checkpointing={draw(st.sampled_from(('true', 'false')))}",
        f"probe.row_count={draw(st.sampled_from(('null', '1', '3', '1000')))}",
        f"probe.every={draw(st.integers(1, 3))}",
        f"seed={draw(st.integers(0, 2**63 - 1))}",
        "train.device=cpu",
        "train.steps=200",
    ]
    return overrides + draw(perturbed(overrides))


def perturbed(overrides: list[str]) -> st.SearchStrategy[list[str]]:
    """Numbers of the optimizer and the temperature that are not those of the files."""
    try:
        values: dict[str, Any] = flatten(plain_values(compose(overrides)))
    except UserError:
        return st.just([])
    keys = [
        key
        for key, value in values.items()
        if key.startswith(("optim.", "model.attention.")) and type(value) is float and key.rpartition(".")[2] in NUMBERS
    ]
    changes = st.lists(st.tuples(st.sampled_from(keys), st.floats(0.3, 1.05)), max_size=3, unique_by=lambda c: c[0])
    return (
        changes.map(lambda found: [f"{key}={values[key] * factor}" for key, factor in found]) if keys else st.just([])
    )


def settings_of(overrides: list[str]) -> RunSettings | None:
    """None for a combination that is refused, which must be with one line."""
    try:
        return compose_run(overrides)
    except UserError as error:
        message_of(error)
        return None


@examples(5)
@given(overrides=configurations())
def test_what_is_let_through_takes_a_step_with_a_finite_loss(overrides: list[str]) -> None:
    TRIED["valid configurations"] += 1
    settings = settings_of(overrides)
    if settings is None:
        TRIED["valid configurations: refused combinations"] += 1
        return
    try:
        task = open_task(settings, progress=False)
        arms = build_arms(settings, task)
        check_guards(arms, attention=settings.model.attention)
    except UserError as error:
        message_of(error)
        TRIED["valid configurations: refused when built"] += 1
        return
    count = settings.train.accumulation_steps
    slices = [task.batch(0, BatchSlice(0, 1, index, count)) for index in range(count)]
    for arm in arms:
        arm.at_step(0, settings.train.steps)
        result = arm.train_step(slices, 0, settings.schedule.factor(0, settings.train.steps))
        assert torch.isfinite(result.loss).all(), (overrides, arm.name)
        assert all(torch.isfinite(weight).all() for weight in arm.model.parameters()), (overrides, arm.name)
