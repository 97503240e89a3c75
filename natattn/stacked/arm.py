"""Arms of runs that differ only in their seed, trained as one computation."""

import contextlib
from collections.abc import Sequence

import torch
from torch import Tensor

from natattn.errors import UserError
from natattn.stacked.model import StackedGPT2
from natattn.stacked.optimizer import JointOptimizer
from natattn.training.arm import Arm, StepResult, Stopwatch


class StackedArm:
    """Several arms that take their training steps at once; the parameters of each become views of stacked ones.

    A step leaves every arm with the weights, optimizer state and statistics that its own ``train_step`` gives, up to
    rounding. Each arm is still evaluated and saved by itself.

    Args:
        arms: equal except for seed and weights.

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
        """Update every arm once; returns their results in order.

        Args:
            slices: accumulation slices [S·slice, context + 1]; the sequences of arm s start at s·slice.
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
        """Make the arms independent again."""
        self.model.release()
        self.optimizer.release()
        for arm in self.arms:
            for name in ("stopwatch", "optimizer_stopwatch"):
                stopwatch = Stopwatch(arm.device)
                stopwatch.seconds = getattr(arm, name).read()
                setattr(arm, name, stopwatch)

    def _backward(self, slices: Sequence[Tensor], step: int) -> Tensor:
        """Compute the gradient of every stack; returns the mean loss of every arm, [S]."""
        for arm in self.arms:
            if not arm.model.training:
                arm.model.train()  # for probes that look at the mode
        total = torch.zeros(len(self.arms), device=self.arms[0].device)
        with contextlib.ExitStack() as observed:
            for arm in self.arms:
                if arm.probe is not None:
                    observed.enter_context(arm.probe.step(step))
            for tokens in slices:
                total = total + self.model.backward(tokens, 1 / len(slices), self.arms[0].autocast)
        return total

    def _clip_gradients(self) -> Tensor:
        """Clip every arm's gradient by its norm; returns the norms before clipping, [S]."""
        gradients = [stack.grad for stack in self.model.stacks.values() if stack.grad is not None]
        norms = torch.stack([torch.linalg.vector_norm(gradient.flatten(1), dim=1) for gradient in gradients])
        norms_S: Tensor = torch.linalg.vector_norm(norms, dim=0)
        limit = self.arms[0].clip_norm
        if limit is not None:
            factors_S = (limit / (norms_S + 1e-6)).clamp_max(1.0)  # the formula of torch.nn.utils.clip_grad_norm_
            for gradient in gradients:
                gradient.mul_(factors_S.view(-1, *[1] * (gradient.ndim - 1)))
        return norms_S


class _Share(Stopwatch):
    """An arm's equal share of the time of its stacked arm, added to its earlier time."""

    def __init__(self, before: Stopwatch, total: Stopwatch, count: int) -> None:
        self.seconds = before.read()
        self._total = total
        self._count = count

    def read(self) -> float:
        """Return the total so far; synchronizes with the GPU."""
        return self.seconds + self._total.read() / self._count
