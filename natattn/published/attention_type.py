"""The settings of ``model=published``: the author's blocks, caller and labels."""

from typing import Any, ClassVar, Literal

from pydantic import Field
from torch import nn

from natattn.attention.types.base import AttentionType, EnergySource


class PublishedAttention(AttentionType):
    """The author's blocks: separate projections, PyTorch's default initialisation, no dropout in the blocks.

    As published, the model is not causal and the labels of both arms are shifted twice, so its losses are not evidence.
    """

    own_architecture: ClassVar[bool] = True
    may_look_ahead: ClassVar[bool] = True

    kind: Literal["published"]
    causal: bool
    masked_energies_saturate: bool  # count the mask's −1e9 in mean|E|, so that the energy factor is 2
    label_shift: int = Field(ge=1, le=2)

    @property
    def tokens_to_label(self) -> int:
        """Distance from an input token to its label: 2 as published."""
        return self.label_shift

    def build_model(
        self, sizes: dict[str, Any], *, vocab_size: int, end_token_id: int, dropout: float, seed: int
    ) -> nn.Module:
        """Build a model of these blocks, in float32 on the CPU, with ``dropout`` on the embeddings only."""
        from natattn.published.model import build_published

        return build_published(
            **sizes,
            vocab_size=vocab_size,
            end_token_id=end_token_id,
            causal=self.causal,
            seed=seed,
            embedding_dropout=dropout,
        )

    def energy_source(self, model: nn.Module) -> EnergySource:
        """Return the energies of the blocks' last forward pass."""
        from natattn.published.block_energies import BlockEnergies

        return BlockEnergies.of(model, masked_energies_saturate=self.masked_energies_saturate)
