"""The arms of one name in runs that differ in their seed alone, trained as one computation."""

import contextlib
from collections.abc import Sequence

import torch
from torch import Tensor

from natattn.errors import UserError
from natattn.stacked.model import StackedGPT2
from natattn.stacked.optimizer import JointOptimizer
from natattn.training.arms import Arm, StepResult, Stopwatch


class JointArm:
    """One training step of several arms at once; each stays an ordinary arm, whose parameters are views of a stack.

    Every arm ends a step with the weights, optimizer state and statistics that its own ``train_step`` gives, to the
    tolerance of floating-point sums. Only what trains is joint: evaluation and checkpoints are each arm's own.

    Args:
        arms: alike but for seed and weights.

    Raises: UserError for a model that cannot be stacked.
    """

    def __init__(self, arms: Sequence[Arm]) -> None:
        self.arms = list(arms)
        try:
            self.model = StackedGPT2([arm.model for arm in arms])
        except ValueError as error:
            raise UserError(f"seeds: {error}") from None
        self.optimizer = JointOptimizer([arm.optimizer for arm in arms], self.model.stacks)
        self._stopwatch, self._optimizer_stopwatch = (Stopwatch(arms[0].device) for _ in range(2))
        for arm in arms:
            arm.stopwatch = _Share(arm.stopwatch, self._stopwatch, len(arms))
            arm.optimizer_stopwatch = _Share(arm.optimizer_stopwatch, self._optimizer_stopwatch, len(arms))

    def train_step(self, slices: Sequence[Tensor], step: int, learning_rate_factor: float) -> list[StepResult]:
        """One update of every arm; results in their order.

        Args:
            slices: accumulation slices [S·slice, context + 1], the sequences of arm s from s·slice on.
        """
        device = self.arms[0].device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        with self._stopwatch.running():
            losses = self._backward(slices, step)
            norms = self._clip_gradients()
            for arm in self.arms:
                arm.set_rates(learning_rate_factor)
            with self._optimizer_stopwatch.running():
                self.optimizer.step()
            for stack in self.model.stacks.values():
                stack.grad = None
            for arm in self.arms:
                arm.clip_energies(step)
        if device.type == "cuda":
            for arm in self.arms:
                arm.peak_memory = max(arm.peak_memory, torch.cuda.max_memory_allocated(device))
        return [StepResult(loss, norm) for loss, norm in zip(losses.unbind(), norms.unbind(), strict=True)]

    def release(self) -> None:
        """Let the arms go on by themselves, or in another joint arm."""
        self.model.release()
        self.optimizer.release()
        for arm in self.arms:
            for name in ("stopwatch", "optimizer_stopwatch"):
                own = Stopwatch(arm.device)
                own.seconds = getattr(arm, name).read()
                setattr(arm, name, own)

    def _backward(self, slices: Sequence[Tensor], step: int) -> Tensor:
        """Gradients of every stack; the mean loss of every arm, [S]."""
        for arm in self.arms:
            if not arm.model.training:
                arm.model.train()  # what its probe captures, it captures in training
        total = torch.zeros(len(self.arms), device=self.arms[0].device)
        with contextlib.ExitStack() as observed:
            for arm in self.arms:
                if arm.probe is not None:
                    observed.enter_context(arm.probe.step(step))
            for tokens in slices:
                total = total + self.model.backward(tokens, 1 / len(slices), self.arms[0].autocast)
        return total

    def _clip_gradients(self) -> Tensor:
        """Clip every arm's gradient by its own norm; the norms before, [S]."""
        gradients = [stack.grad for stack in self.model.stacks.values() if stack.grad is not None]
        norms = torch.stack([torch.linalg.vector_norm(gradient.flatten(1), dim=1) for gradient in gradients])
        norms_S: Tensor = torch.linalg.vector_norm(norms, dim=0)
        limit = self.arms[0].clip_norm
        if limit is not None:
            factors_S = (limit / (norms_S + 1e-6)).clamp_max(1.0)  # as torch.nn.utils.clip_grad_norm_
            for gradient in gradients:
                gradient.mul_(factors_S.view(-1, *[1] * (gradient.ndim - 1)))
        return norms_S


class _Share(Stopwatch):
    """An arm's equal part of the time that its joint arm takes, on top of what it took before."""

    def __init__(self, before: Stopwatch, joint: Stopwatch, count: int) -> None:
        self.seconds = before.read()
        self._joint = joint
        self._count = count

    def read(self) -> float:
        """Total so far; waits for the GPU."""
        return self.seconds + self._joint.read() / self._count
