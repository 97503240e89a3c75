"""The optimizers of this project for other training loops: ``FisherMuon(model)``, ``NaturalMuon(model)``."""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, ClassVar

from torch import nn

from natattn.distributed.ranks import Ranks
from natattn.fisher.probe import FisherProbe
from natattn.optim.optimizer import DirectionalOptimizer
from natattn.optim.partition import partition
from natattn.optim.settings import OptimSettings, read_settings


class ModelOptimizer(DirectionalOptimizer):
    """An entry of ``optim=`` for a model in any training loop.

    Without ``probe`` it attaches one to the model: every forward pass up to the next ``step()`` is observed as that
    step's, ``state_dict()`` includes its averages, and ``detach()`` removes it. With a ``probe`` the loop marks what
    belongs to a step: ``with probe.step(n): loss.backward()``.
    """

    entry: ClassVar[str]

    def __init__(
        self,
        model: nn.Module,
        *,
        probe: FisherProbe | None = None,
        lr: float | None = None,
        default_lr: float | None = None,
        weight_decay: float | None = None,
        damping: float | None = None,
        seed: int = 0,
        ranks: Ranks | None = None,
    ) -> None:
        """
        Args:
            model: a transformers ``PreTrainedModel``, with all of its parameters.
            probe: one that keeps what the directions read, from ``build_probe`` or ``FisherProbe(model, factors=…)``.
            lr: learning rate of the hidden matrices; None for that of the entry.
            default_lr: learning rate of embeddings, head and vectors; None for that of the entry.
            weight_decay: of matrices; None for that of the entry.
            damping: of preconditioned matrices, in units of their factors' mean eigenvalue; None for that of the entry.
            seed: of the generator that places the sampled query rows.
            ranks: ``Ranks.of_group()`` under DistributedDataParallel or ``fully_shard``: the processes that share each
                batch, the factors and the work on matrices. A ``probe`` must have been given the same.

        Raises: ValueError for values out of range, a model whose parameters or attention are unknown, and a probe of
            another model or one that keeps too little. ``step()`` raises RuntimeError while nothing has been captured.
        """
        values = read_settings(self.entry).model_dump()
        if lr is not None:
            values["learning_rates"]["hidden"] = lr
        if default_lr is not None:
            values["learning_rates"].setdefault("hidden", values["learning_rate"])
            values["learning_rate"] = default_lr
        if weight_decay is not None:
            values["weight_decay"] = weight_decay
        for direction in values["directions"].values():
            if damping is not None and "damping" in direction:
                direction["damping"] = damping
        settings = OptimSettings.model_validate(values)
        self._owns_probe = probe is None
        self._observing = ExitStack()
        if probe is None:
            probe = settings.build_probe(model, seed=seed, ranks=ranks)  # type: ignore[assignment]
        else:
            settings.check_probe(model, probe)
        assert probe is not None
        self.probe: FisherProbe = probe
        try:
            super().__init__(partition(model), statistics=probe, ranks=ranks, **settings.optimizer_arguments())
        except BaseException:
            self.detach()
            raise
        self._observe()

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Take one step; see ``DirectionalOptimizer``."""
        loss = super().step(closure)
        self._observe()
        return loss

    def _begin_step(self) -> None:
        self._observing.close()
        if not self.probe.captures and (self.probe.factors or self.probe.covariances):
            self._observe()
            inside = "" if self._owns_probe else ", inside probe.step(n)"
            raise RuntimeError(
                f"{type(self).__name__}: no factors have been captured; step 0 needs a forward pass in training mode"
                + inside
            )
        super()._begin_step()

    def detach(self) -> None:
        """Restore the model as it was before this optimizer attached its own probe."""
        if self._owns_probe:
            self._observing.close()
            self.probe.detach()

    def state_dict(self) -> dict[str, Any]:
        """Return the state; see ``DirectionalOptimizer``. It includes the averages of an own probe."""
        state = super().state_dict()
        if self._owns_probe:
            state["probe"] = self.probe.state_dict()
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore a ``state_dict``; see ``DirectionalOptimizer``."""
        super().load_state_dict(state_dict)
        if self._owns_probe:
            device = self.parameters()[0].device
            self.probe.load_state_dict({name: value.to(device) for name, value in state_dict["probe"].items()})
        self._observe()

    def _observe(self) -> None:
        """Observe the forward passes up to the next ``step()`` as that step's."""
        if self._owns_probe:
            self._observing.close()
            self._observing.enter_context(self.probe.step(self.steps))


class FisherMuon(ModelOptimizer):
    """Muon with W_Q and W_K orthogonalised head by head in the metric of the attention-Fisher: ``optim=fisher_muon``.

    u = S^(−1/2) orth(S^(−1/2) M A^(−1/2)) A^(−1/2), the steepest descent for momentum M under the spectral norm of
    S^(1/2) u A^(1/2), with the factors S ⊗ A of the Fisher information that the attention patterns carry.
    """

    entry = "fisher_muon"


class NaturalMuon(ModelOptimizer):
    """Muon preconditioned by input covariances, for W_Q, W_K and W_V by attention's own: ``optim=natural_muon``."""

    entry = "natural_muon"
