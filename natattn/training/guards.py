"""Checks before training: causality, labels shifted once, independent examples, a batch that the ranks can share."""

import math

import torch
from torch import Tensor

from natattn.attention.types.base import AttentionType
from natattn.distributed.ranks import Ranks
from natattn.errors import UserError
from natattn.tasks.base import BatchSlice, to_device
from natattn.tasks.language import LanguageTask
from natattn.training.arm import Arm
from natattn.training.settings import RunSettings

TOLERANCE = 1e-4  # change of a logit, in standard deviations of the logits; or loss of an oracle, in nats
BATCH_TOLERANCE = 1e-2  # larger, because a GPU's TF32 convolutions sum in another order for another batch size


def check_ranks(settings: RunSettings, ranks: Ranks) -> None:
    """Check that the run can be distributed over the ranks and the batch divided equally.

    Raises: UserError naming the key.
    """
    if ranks.size == 1:
        return
    batch_size, accumulation_steps = settings.train.batch_size, settings.train.accumulation_steps
    if settings.task.kind == "multimodal":
        raise UserError(
            "task=multimodal: the loss compares every pair with all others of its batch, which a rank does not see; "
            "run it without torchrun"
        )
    if settings.model.attention.own_architecture:
        raise UserError(
            f"model={settings.model.name}: each rank would measure its own energies; run it without torchrun"
        )
    if settings.train.device.startswith("cuda:"):
        raise UserError(f"train.device={settings.train.device}: each rank needs its own GPU; valid: auto, cuda, cpu")
    if settings.train.parallel == "fsdp" and settings.stabilisers.qk_clip is not None:
        raise UserError("stabilisers.qk_clip: needs unsharded query and key weights; valid: train.parallel=ddp")
    if batch_size % (ranks.size * accumulation_steps):
        raise UserError(
            f"train.batch_size={batch_size}: cannot be divided equally among {ranks.size} ranks × "
            f"{accumulation_steps} accumulation steps; valid: a multiple of {ranks.size * accumulation_steps}"
        )


def check_guards(arms: list[Arm], *, attention: AttentionType) -> list[str]:
    """Check every arm, and return the names of the arms that read later tokens.

    Only model=published may do that, and may shift its labels twice.

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
    """Check that an arm's output for an example does not depend on the rest of the batch.

    Raises: UserError naming the arm.
    """
    arm.model.eval()
    inputs = arm.task.probe_inputs(arm.device)
    if len(next(iter(inputs.values()))) < 2:  # a single example is held out: check training examples
        inputs = arm.task.inputs(to_device(arm.task.batch(0, BatchSlice()), arm.device))
    alone = {name: value[:1] for name, value in inputs.items()}
    together, single = (arm.task.examples(arm.model(**batch))[:1].float() for batch in (inputs, alone))
    if not bool(single.isfinite().all()):
        raise UserError(f"arm {arm.name}: its outputs are not finite before the first step; check its weights")
    change = float((together - single).abs().max()) / max(float(single.std()), 1e-30)
    if not change <= BATCH_TOLERANCE:
        raise UserError(
            f"arm {arm.name}: its output for an example changes by {change:.2g} standard deviations with the rest of "
            "the batch; examples must be independent"
        )


@torch.no_grad()
def causality_leak(arm: Arm, context: int, vocab_size: int) -> float:
    """Return the largest change of any logit before position t when the token at t changes.

    t is in the middle and at the end. The unit is the standard deviation of the logits, so that a small initialisation
    does not hide a leak; nan if a logit is not finite.
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
    """Check that logits do not depend on later tokens.

    Raises: UserError naming the arm and the size of the leak.
    """
    leak = causality_leak(arm, context, vocab_size)
    if not math.isfinite(leak):
        raise UserError(f"arm {arm.name}: its logits are not finite before the first step; check its weights")
    if leak > TOLERANCE:
        raise UserError(
            f"arm {arm.name}: a logit changes by {leak:.2g} standard deviations when a later token changes; "
            "the model is not causal"
        )


def check_label_shift(arm: Arm, vocab_size: int) -> None:
    """Check that the label at position t is token t + 1: an oracle that knows the next token must have no loss.

    Raises: UserError naming the arm.
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
