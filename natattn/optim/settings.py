"""The schema of `optim=`: which direction each role takes, and the optimizer and probe that are built from it."""

from typing import Any, cast

from omegaconf import DictConfig, OmegaConf
from pydantic import Field, field_validator, model_validator
from torch import nn

from natattn.attention.probe import AttentionProbe
from natattn.config.base import Decay, Name, Positive, Settings
from natattn.distributed.ranks import Ranks
from natattn.fisher.kronecker import FACTORS
from natattn.fisher.probe import FisherProbe
from natattn.optim.directions import Direction, DirectionSettings, Statistics
from natattn.optim.optimizer import DirectionalOptimizer
from natattn.optim.partition import ROLES, ParameterView, partition
from natattn.optim.placebo import PlaceboKind, PlaceboStatistics
from natattn.optim.slots import DIRECTION_KEYS, key_of
from natattn.storage.atomic import conf_folder

_ROLE_OF_PLAIN = ("query", "key", "value")


class FactorSettings(Settings):
    """How Kronecker factors are captured and averaged; see ``FisherProbe``."""

    every: int = Field(ge=1)
    sequences: int = Field(ge=1)
    rows: int | None = Field(ge=1)
    decay: Decay
    shared_key_input: bool


class OptimSettings(Settings):
    """Which direction each role takes, and the step that they share.

    ``directions`` maps a role, ``hidden`` (query, key, value, output, mlp) or ``default`` to a direction; the most
    specific one holds. ``learning_rates`` gives some of these keys a rate of their own. ``placebo`` replaces what
    attention says, see ``PlaceboStatistics``.
    """

    name: Name
    learning_rate: Positive
    weight_decay: float = Field(ge=0)
    directions: dict[str, DirectionSettings]
    learning_rates: dict[str, Positive]
    factors: FactorSettings | None = None
    placebo: PlaceboKind | None = None
    placebo_energy: float | None = None

    @field_validator("directions", "learning_rates")
    @classmethod
    def _known_keys(cls, value: dict[str, Any]) -> dict[str, Any]:
        unknown = [key for key in value if key not in DIRECTION_KEYS]
        if unknown:
            raise ValueError(f"unknown role {unknown[0]!r}; valid: {', '.join(DIRECTION_KEYS)}")
        return value

    @field_validator("directions")
    @classmethod
    def _complete(cls, value: dict[str, Any]) -> dict[str, Any]:
        missing = [role for role in ROLES if key_of(value, role) is None]
        if missing:
            raise ValueError(f"no direction for role {missing[0]!r}; add it or a default")
        return value

    @model_validator(mode="after")
    def _parts_fit(self) -> "OptimSettings":
        wanted = self._factors
        if wanted and self.factors is None:
            raise ValueError(f"factors: the directions read {', '.join(sorted(wanted))}; say how they are captured")
        if self.placebo is not None and not self.reads_attention:
            raise ValueError(f"placebo={self.placebo}: the optimizer reads nothing of attention; valid: null")
        if self.placebo == "plain" and not wanted & set(FACTORS):
            raise ValueError("placebo=plain: there are no factors to replace; valid: constant, shuffled, identity")
        if self.placebo_energy is not None and self.placebo != "constant":
            raise ValueError("placebo_energy: only the constant placebo has one")
        return self

    @property
    def _factors(self) -> set[str]:
        """Factors that the directions read, plain covariances among them."""
        return {name for role, direction in self._by_role() for name in direction.factors(role)}

    def _by_role(self) -> list[tuple[str, Direction]]:
        return [(role, self.directions[str(key_of(self.directions, role))].build()) for role in ROLES]

    @property
    def quantities(self) -> tuple[str, ...]:
        """Attention quantities that the directions read."""
        return tuple(dict.fromkeys(name for _, direction in self._by_role() for name in direction.quantities))

    @property
    def needs_statistics(self) -> bool:
        """Whether a direction needs a probe."""
        return any(direction.needs_statistics for _, direction in self._by_role())

    @property
    def reads_attention(self) -> bool:
        """Whether a direction reads attention, so that the model must be observable; plain inputs are no attention."""
        return bool(self.quantities or self._factors & set(FACTORS))

    def build(
        self, model: nn.Module, statistics: Statistics | None = None, *, seed: int = 0, ranks: Ranks | None = None
    ) -> DirectionalOptimizer:
        """The optimizer of a model; ``statistics`` is the probe attached to it, ``ranks`` who else trains it."""
        views = partition(model)
        if self.placebo is not None and statistics is not None:
            statistics = PlaceboStatistics(statistics, self.placebo, views, energy=self.placebo_energy, seed=seed)
        return DirectionalOptimizer(views, statistics=statistics, ranks=ranks, **self.optimizer_arguments())

    def scaled(self, factor: float) -> "OptimSettings":
        """The same with every learning rate multiplied."""
        if factor == 1:
            return self
        rates = {key: rate * factor for key, rate in self.learning_rates.items()}
        return self.model_copy(update={"learning_rate": self.learning_rate * factor, "learning_rates": rates})

    def optimizer_arguments(self) -> dict[str, Any]:
        """Arguments of ``DirectionalOptimizer`` beside the model's views and statistics."""
        return {
            "directions": {key: direction.build() for key, direction in self.directions.items()},
            "learning_rate": self.learning_rate,
            "learning_rates": self.learning_rates,
            "weight_decay": self.weight_decay,
        }

    def check_probe(self, model: nn.Module, probe: FisherProbe) -> None:
        """Raises: ValueError for a probe of another model, or one that does not keep what the directions read."""
        if probe.model is not model:
            raise ValueError(f"probe: observes another {type(probe.model).__name__} than the model given")
        factors, covariances = self._factors_of(partition(model))
        missing = [name for name in factors if name not in probe.factors]
        missing += [f"the covariance of {name}" for name in covariances if name not in probe.covariances]
        missing += [name for name in self.quantities if name not in probe.quantities]
        if missing:
            raise ValueError(f"probe: does not keep {', '.join(missing[:3])}{', …' if len(missing) > 3 else ''}")

    def build_probe(self, model: Any, *, ranks: Ranks | None = None, **options: Any) -> AttentionProbe | None:
        """The probe that the directions need, attached to the model; None where they need none.

        Args:
            ranks: the processes that share each batch.
            options: of ``AttentionProbe``: row_count, every, seed, further quantities, …

        Raises: ValueError for a model whose parameters or attention are not known.
        """
        quantities = tuple(dict.fromkeys((*self.quantities, *options.pop("quantities", ()))))
        if self.factors is None:
            return AttentionProbe(model, quantities=quantities, **options) if quantities else None
        factors, covariances = self._factors_of(partition(model))
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

    def _factors_of(self, views: list[ParameterView]) -> tuple[list[Any], list[str]]:
        """Attention factors, and modules whose input covariances the directions read."""
        directions = dict(self._by_role())
        factors: dict[str, None] = {}
        covariances: dict[str, None] = {}
        for view in views:
            names = directions[view.role].factors(view.role)
            factors |= dict.fromkeys(name for name in names if name in FACTORS)
            if "covariance" in names or (self.placebo == "plain" and view.role in _ROLE_OF_PLAIN):
                covariances[view.module] = None
        return list(factors), list(covariances)


def read_settings(name: str) -> OptimSettings:
    """The settings of ``optim=<name>`` when nothing is overridden."""
    return OptimSettings.model_validate(OmegaConf.to_container(_composed(name)))


def _composed(name: str) -> DictConfig:
    """conf/optim/<name>.yaml over the entries that its ``defaults`` name."""
    entry = OmegaConf.load(conf_folder() / "optim" / f"{name}.yaml")
    assert isinstance(entry, DictConfig)
    bases = [base for base in entry.pop("defaults", []) if base != "_self_"]
    return cast(DictConfig, OmegaConf.merge(*map(_composed, bases), entry))
