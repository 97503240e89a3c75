"""The schema of ``optim=``: the direction of each role, and the optimizer and probe that are built from it."""

from typing import Any, cast

from omegaconf import DictConfig, OmegaConf
from pydantic import Field, field_validator, model_validator
from torch import nn

from natattn.attention.probe import AttentionProbe
from natattn.config.base import Decay, Name, Positive, Settings
from natattn.distributed.ranks import Ranks
from natattn.fisher.kronecker import FACTORS
from natattn.fisher.probe import FisherProbe
from natattn.optim.directions import AnyDirection, Direction, Statistics
from natattn.optim.matrix import DIRECTION_KEYS, ROLES, key_of
from natattn.optim.optimizer import DirectionalOptimizer
from natattn.optim.partition import partition
from natattn.optim.placebo import PlaceboKind, PlaceboStatistics
from natattn.storage.atomic import conf_folder


class FactorSettings(Settings):
    """Capture and averaging of Kronecker factors; see ``FisherProbe``."""

    every: int = Field(ge=1)
    sequences: int = Field(ge=1)
    rows: int | None = Field(ge=1)
    decay: Decay
    shared_key_input: bool


class OptimSettings(Settings):
    """The direction of each role, and the step that they share.

    ``directions`` maps a role, ``hidden`` (query, key, value, output, mlp) or ``default`` to a direction; the most
    specific key applies. ``learning_rates`` gives some of these keys a rate of their own. ``placebo`` replaces the
    attention statistics; see ``PlaceboStatistics``.
    """

    name: Name
    learning_rate: Positive
    weight_decay: float = Field(ge=0)
    directions: dict[str, AnyDirection]
    learning_rates: dict[str, Positive]
    factors: FactorSettings | None = None
    placebo: PlaceboKind | None = None
    placebo_energy: float | None = None

    @field_validator("directions", "learning_rates")
    @classmethod
    def _known_keys(cls, value: dict[str, Any]) -> dict[str, Any]:
        unknown = [key for key in value if key not in DIRECTION_KEYS]
        if unknown:
            raise ValueError(f"unknown role {unknown[0]!r}. Use {', '.join(DIRECTION_KEYS)}")
        return value

    @field_validator("directions")
    @classmethod
    def _complete(cls, value: dict[str, Any]) -> dict[str, Any]:
        missing = [role for role in ROLES if key_of(value, role) is None]
        if missing:
            raise ValueError(f"no direction for role {missing[0]!r}. Add it, or a default")
        return value

    @model_validator(mode="after")
    def _parts_fit(self) -> "OptimSettings":
        wanted = self._factors
        if wanted and self.factors is None:
            raise ValueError(f"factors: the directions read {', '.join(sorted(wanted))}. Set how they are captured")
        if self.placebo is not None and not self.reads_attention:
            raise ValueError(f"placebo={self.placebo}: the optimizer does not read attention. Use placebo=null")
        if self.placebo == "plain" and not wanted & set(FACTORS):
            raise ValueError("placebo=plain: there are no factors to replace. Use constant, shuffled or identity")
        if self.placebo_energy is not None and self.placebo != "constant":
            raise ValueError("placebo_energy: only the constant placebo has one")
        return self

    def direction_of(self, role: str) -> Direction:
        """Return the direction of a role."""
        return self.directions[str(key_of(self.directions, role))]  # type: ignore[arg-type]

    @property
    def _factors(self) -> set[str]:
        """Factors that the directions read, including plain covariances."""
        return {name for role in ROLES for name in self.direction_of(role).factors(role)}

    @property
    def quantities(self) -> tuple[str, ...]:
        """Attention quantities that the directions read."""
        return tuple(dict.fromkeys(name for role in ROLES for name in self.direction_of(role).quantities))

    @property
    def needs_statistics(self) -> bool:
        """Return whether a direction needs a probe."""
        return bool(self.quantities or self._factors)

    @property
    def reads_attention(self) -> bool:
        """Return whether a direction reads attention (not only plain inputs), so the model must be observable."""
        return bool(self.quantities or self._factors & set(FACTORS))

    def build(
        self, model: nn.Module, statistics: Statistics | None = None, *, seed: int = 0, ranks: Ranks | None = None
    ) -> DirectionalOptimizer:
        """Return the optimizer of a model.

        Args:
            statistics: the probe attached to the model.
            seed: of the placebo's random numbers.
            ranks: the processes that train the same parameters.
        """
        matrices = partition(model)
        if self.placebo is not None and statistics is not None:
            statistics = PlaceboStatistics(statistics, self.placebo, matrices, energy=self.placebo_energy, seed=seed)
        return DirectionalOptimizer(matrices, statistics=statistics, ranks=ranks, **self.optimizer_arguments())

    def scaled(self, factor: float) -> "OptimSettings":
        """Return these settings with every learning rate multiplied by ``factor``."""
        if factor == 1:
            return self
        rates = {key: rate * factor for key, rate in self.learning_rates.items()}
        return self.model_copy(update={"learning_rate": self.learning_rate * factor, "learning_rates": rates})

    def optimizer_arguments(self) -> dict[str, Any]:
        """Return the arguments of ``DirectionalOptimizer`` that do not depend on the model."""
        names = ("directions", "learning_rate", "learning_rates", "weight_decay")
        return {name: getattr(self, name) for name in names}

    def check_probe(self, model: nn.Module, probe: FisherProbe) -> None:
        """Raise ValueError for a probe of another model, or one that does not keep what the directions read."""
        if probe.model is not model:
            raise ValueError(f"probe: observes another {type(probe.model).__name__} than the given model")
        factors, covariances = self._factors_of(model)
        missing = [name for name in factors if name not in probe.factors]
        missing += [f"the covariance of {name}" for name in covariances if name not in probe.covariances]
        missing += [name for name in self.quantities if name not in probe.quantities]
        if missing:
            raise ValueError(f"probe: does not keep {', '.join(missing[:3])}{', …' if len(missing) > 3 else ''}")

    def build_probe(self, model: Any, *, ranks: Ranks | None = None, **options: Any) -> AttentionProbe | None:
        """Return the probe that the directions need, attached to the model; None if they need none.

        Args:
            ranks: the processes that share each batch.
            options: of ``AttentionProbe``: row_count, every, seed, further quantities, …

        Raises: ValueError for a model whose parameters or attention are unknown.
        """
        quantities = tuple(dict.fromkeys((*self.quantities, *options.pop("quantities", ()))))
        if self.factors is None:
            return AttentionProbe(model, quantities=quantities, **options) if quantities else None
        factors, covariances = self._factors_of(model)
        return FisherProbe(
            model,
            quantities=quantities,
            factors=factors,
            covariances=covariances,
            capture_every=self.factors.every,
            sequences=self.factors.sequences,
            capture_rows=self.factors.rows,
            decay=self.factors.decay,
            shared_key_input=self.factors.shared_key_input,
            ranks=ranks,
            **options,
        )

    def _factors_of(self, model: nn.Module) -> tuple[list[Any], list[str]]:
        """Return the attention factors, and the modules whose input covariances, that the directions read."""
        factors: dict[str, None] = {}
        covariances: dict[str, None] = {}
        for matrix in partition(model):
            names = self.direction_of(matrix.role).factors(matrix.role)
            factors |= dict.fromkeys(name for name in names if name in FACTORS)
            if "covariance" in names or (self.placebo == "plain" and matrix.role in ("query", "key", "value")):
                covariances[matrix.module] = None
        return list(factors), list(covariances)


def read_settings(name: str) -> OptimSettings:
    """Return the settings of ``optim=<name>`` without overrides."""
    return OptimSettings.model_validate(OmegaConf.to_container(_composed(name)))


def _composed(name: str) -> DictConfig:
    """Return conf/optim/<name>.yaml merged over the files that its ``defaults`` name."""
    entry = OmegaConf.load(conf_folder() / "optim" / f"{name}.yaml")
    assert isinstance(entry, DictConfig)
    bases = [base for base in entry.pop("defaults", []) if base != "_self_"]
    return cast(DictConfig, OmegaConf.merge(*map(_composed, bases), entry))
