"""One matrix of a model as a direction sees it, and the table keys that assign directions and rates to roles."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from torch import Tensor, nn

Role = Literal["embedding", "vector", "query", "key", "value", "output", "mlp", "head"]
ROLES: tuple[Role, ...] = get_args(Role)
HIDDEN_ROLES: frozenset[Role] = frozenset({"query", "key", "value", "output", "mlp"})
DIRECTION_KEYS = (*ROLES, "hidden", "default")
State = dict[str, Tensor]


@dataclass(eq=False)
class Matrix:
    """A matrix or vector of a model: a whole parameter, or a slice of a fused one.

    Attributes:
        name: the parameter's name, with the role appended for a slice of a fused weight.
        parameter: the stored parameter.
        role: what it is in the model.
        layer: index of the self-attention layer of its block; None outside blocks.
        module: name of the module that owns the parameter, whose input covariance may be kept.
        heads: number of heads that the rows (query, key, value) or columns (output) belong to; None if there are none.
        dim, start, stop: the slice of the stored tensor; ``dim`` is None for a whole parameter.
        transposed: stored as (inputs, outputs) and shown as (outputs, inputs), like ``nn.Linear``.
        direction: key of its direction in the optimizer's table.
        rate: learning rate relative to that of the parameter group.
        parts: the matrices that an elementwise direction is shown as one parameter, each with a role of its own.
        state: what the direction keeps between steps.
        value, gradient: the matrix and its gradient, set by the optimizer before every step.
    """

    name: str
    parameter: nn.Parameter
    role: Role
    layer: int | None = None
    module: str = ""
    heads: int | None = None
    dim: int | None = None
    start: int = 0
    stop: int = 0
    transposed: bool = False
    direction: str = "default"
    rate: float = 1.0
    parts: "tuple[Matrix, ...]" = ()
    state: State = field(default_factory=dict)
    value: Tensor = field(init=False)
    gradient: Tensor = field(init=False)

    def of(self, tensor: Tensor) -> Tensor:
        """Return this matrix of a tensor that is shaped like the parameter (its value, gradient or update)."""
        part = tensor if self.dim is None else tensor.narrow(self.dim, self.start, self.stop - self.start)
        return part.mT if self.transposed else part

    @property
    def state_prefix(self) -> str:
        """Prefix of its entries in the parameter's saved state: empty for a whole parameter."""
        return "" if self.dim is None else f"{self.role}."


def key_of(table: Mapping[str, Any], role: Role) -> str | None:
    """Return the most specific key of a table that covers a role: the role itself, ``hidden``, ``default``."""
    candidates = (role, "hidden", "default") if role in HIDDEN_ROLES else (role, "default")
    return next((key for key in candidates if key in table), None)
