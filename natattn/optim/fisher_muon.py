"""The optimizers of this project as PyTorch users expect one: ``FisherMuon(model)``, ``NaturalMuon(model)``."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any, ClassVar

from torch import Tensor, nn

from natattn.distributed.ranks import Ranks
from natattn.fisher.probe import FisherProbe
from natattn.optim.optimizer import DirectionalOptimizer
from natattn.optim.partition import partition
from natattn.optim.settings import OptimSettings, read_settings


class _OfModel(DirectionalOptimizer):
    """One entry of ``optim=`` for a model in a training loop of the user's own.

    Without ``probe`` it attaches one of its own, whose captures it opens and closes around each ``step()`` and whose
    averages are in its ``state_dict()``; ``detach()`` takes it off the model again. With a ``probe`` the loop says what
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
            lr: of the hidden matrices; None for that of the entry.
            default_lr: of embeddings, head and vectors; None for that of the entry.
            weight_decay: of matrices; None for that of the entry.
            damping: of preconditioned matrices, in units of their factors' mean eigenvalue; None for that of the entry.
            seed: of the generator that places the sampled query rows.
            ranks: ``Ranks.of_group()`` under DistributedDataParallel or ``fully_shard``: who shares each batch, factors
                and the work on matrices. A ``probe`` must have been given the same.

        Raises: ValueError for values out of range, a model whose parameters or attention are not known, and a probe of
            another model or one that keeps too little. ``step()`` raises RuntimeError while nothing has been captured.
        """
        settings = _changed(read_settings(self.entry), lr, default_lr, weight_decay, damping)
        self._own = probe is None
        self._under_way = ExitStack()
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
        self._open()

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step; see ``DirectionalOptimizer``."""
        loss = super().step(closure)
        self._open()
        return loss

    def _begin_step(self) -> None:
        self._under_way.close()
        if not self.probe.captures and (self.probe.factors or self.probe.covariances):
            self._open()
            inside = "" if self._own else ", inside probe.step(n)"
            raise RuntimeError(
                f"{type(self).__name__}: no factors have been captured; step 0 needs a forward pass in training mode"
                + inside
            )
        super()._begin_step()

    def detach(self) -> None:
        """Leave the model as it was before this optimizer attached its own probe."""
        if self._own:
            self._under_way.close()
            self.probe.detach()

    def state_dict(self) -> dict[str, Any]:
        """See ``DirectionalOptimizer``; with the averages of a probe of its own."""
        state = super().state_dict()
        if self._own:
            state["probe"] = self.probe.state_dict()
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """See ``DirectionalOptimizer``."""
        super().load_state_dict(state_dict)
        if self._own:
            averages: Mapping[str, Tensor] = state_dict["probe"]
            device = next(iter(self._slots)).device
            self.probe.load_state_dict({name: value.to(device) for name, value in averages.items()})
        self._open()

    def _open(self) -> None:
        """Have the forward passes up to the next ``step()`` observed as that step's."""
        if self._own:
            self._under_way.close()
            self._under_way.enter_context(self.probe.step(self.steps))


class FisherMuon(_OfModel):
    """Muon with W_Q and W_K, head by head, orthogonalised in the metric of the attention-Fisher: ``optim=fisher_muon``.

    u = S^(−1/2) orth(S^(−1/2) M A^(−1/2)) A^(−1/2), the steepest descent for momentum M under the spectral norm of
    S^(1/2) u A^(1/2), with the factors S ⊗ A of the Fisher information that the attention patterns carry.
    """

    entry = "fisher_muon"


class NaturalMuon(_OfModel):
    """Muon preconditioned by inputs, which for W_Q, W_K and W_V are attention's own: ``optim=natural_muon``."""

    entry = "natural_muon"


def _changed(
    settings: OptimSettings, lr: float | None, default_lr: float | None, decay: float | None, damping: float | None
) -> OptimSettings:
    values = settings.model_dump()
    if lr is not None:
        values["learning_rates"]["hidden"] = lr
    if default_lr is not None:
        values["learning_rates"].setdefault("hidden", values["learning_rate"])
        values["learning_rate"] = default_lr
    if decay is not None:
        values["weight_decay"] = decay
    for direction in values["directions"].values():
        if damping is not None and "damping" in direction:
            direction["damping"] = damping
    return OptimSettings.model_validate(values)
