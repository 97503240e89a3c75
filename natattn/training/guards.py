"""Checks made before a run trains: no look into the future, labels shifted once, examples apart from each other."""

import math

import torch
from torch import Tensor

from natattn.attention.types.base import AttentionType
from natattn.errors import UserError
from natattn.tasks.base import BatchSlice, to_device
from natattn.tasks.language import LanguageTask
from natattn.training.arms import Arm

TOLERANCE = 1e-4  # of a logit's change, in units of the logits' standard deviation; of an oracle's loss, in nats
BATCH_TOLERANCE = 1e-2  # as the first; a GPU's convolutions round to TF32, in another order for another batch


def check_guards(arms: list[Arm], *, attention: AttentionType) -> list[str]:
    """Check every arm before it trains; the names of the arms that read later tokens, which only model=published may.

    That model's labels may be shifted twice as well, as its author's were.

    Raises: UserError for any other model.
    """
    task = arms[0].task
    if not isinstance(task, LanguageTask):
        for arm in arms:
            check_independence(arm)
        return []
    context, vocab_size = task.context, task.corpus.tokenizer.vocab_size
    if attention.may_look_ahead:
        return [arm.name for arm in arms if not causality_leak(arm, context, vocab_size) <= TOLERANCE]
    for arm in arms:
        check_causality(arm, context, vocab_size)
        check_label_shift(arm, vocab_size)
    return []


@torch.no_grad()
def check_independence(arm: Arm) -> None:
    """Refuse an arm that says something else of an example when others are in its batch: it could tell them apart.

    Raises: UserError naming the arm.
    """
    arm.model.eval()
    inputs = arm.task.probe_inputs(arm.device)
    if len(next(iter(inputs.values()))) < 2:  # one example held out: those that are trained on show it as well
        inputs = arm.task.inputs(to_device(arm.task.batch(0, BatchSlice()), arm.device))
    alone = {name: value[:1] for name, value in inputs.items()}
    together, single = (arm.task.examples(arm.model(**each))[:1].float() for each in (inputs, alone))
    if not bool(single.isfinite().all()):
        raise UserError(f"arm {arm.name}: its outputs are not finite before the first step; are its weights?")
    change = float((together - single).abs().max()) / max(float(single.std()), 1e-30)
    if not change <= BATCH_TOLERANCE:
        raise UserError(
            f"arm {arm.name}: its output for an example moves by {change:.2g} standard deviations with the rest of the "
            "batch; examples must not see each other"
        )


@torch.no_grad()
def causality_leak(arm: Arm, context: int, vocab_size: int) -> float:
    """Largest change of any logit before position t when the token at t changes, for t in the middle and at the end.

    In units of the standard deviation of the logits, so that a small initialisation hides nothing; nan where a logit is
    not finite.
    """
    arm.model.eval()
    generator = torch.Generator().manual_seed(0)
    length = min(context, 64)
    tokens = torch.randint(vocab_size, (1, length), generator=generator)
    original = _logits(arm, tokens)
    leak = 0.0
    for position in {length // 2, length - 1}:
        changed = tokens.clone()
        changed[0, position] = (changed[0, position] + 1) % vocab_size
        difference = float((_logits(arm, changed) - original)[:, :position].abs().max())
        leak = difference if math.isnan(difference) else max(leak, difference)
    return leak / max(float(original.std()), 1e-30)


def check_causality(arm: Arm, context: int, vocab_size: int) -> None:
    """Refuse an arm whose logits depend on later tokens.

    Raises: UserError naming the arm and the size of the leak.
    """
    leak = causality_leak(arm, context, vocab_size)
    if not math.isfinite(leak):
        raise UserError(f"arm {arm.name}: its logits are not finite before the first step; are its weights?")
    if leak > TOLERANCE:
        raise UserError(
            f"arm {arm.name}: a logit moves by {leak:.2g} standard deviations when a later token changes; "
            "the model is not causal"
        )


def check_label_shift(arm: Arm, vocab_size: int) -> None:
    """Refuse a loss whose label at position t is not token t + 1.

    A stand-in model that knows the next token must have (almost) no loss.

    Raises: UserError.
    """
    tokens = torch.arange(8)[None] % vocab_size

    def oracle(input_ids: Tensor, **_: object) -> object:
        following = torch.roll(tokens, -1, dims=1)[:, : input_ids.shape[1]]
        logits = 100.0 * torch.nn.functional.one_hot(following, vocab_size).float()
        return type("Output", (), {"logits": logits})()

    forward, arm.forward = arm.forward, oracle
    try:
        loss = float(arm.loss(tokens))
    finally:
        arm.forward = forward
    if loss > TOLERANCE:
        raise UserError(f"arm {arm.name}: labels are not the tokens shifted once (an oracle's loss is {loss:.2f})")


def _logits(arm: Arm, tokens: Tensor) -> Tensor:
    logits: Tensor = arm.model(input_ids=tokens.to(arm.device), use_cache=False).logits
    return logits.float().cpu()
