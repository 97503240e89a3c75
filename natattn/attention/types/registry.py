"""The attention types by the ``kind`` of ``model.attention``.

To add one, write its file and add a line to ``KINDS``. A type outside the core is reached by its name here, and nothing
else in the core imports it. Importing this module registers all attention functions with transformers.
"""

from functools import reduce
from operator import or_
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from natattn.attention.types.base import AttentionType

KINDS = {
    "softmax": "natattn.attention.types.softmax:SoftmaxAttention",
    "natural": "natattn.attention.types.natural:NaturalAttention",
    "natural_gradient": "natattn.attention.types.natural_gradient:NaturalGradientAttention",
    "tempered": "natattn.attention.types.tempered:TemperedAttention",
    "published": "natattn.published.attention_type:PublishedAttention",
}
if TYPE_CHECKING:
    AttentionSettings = AttentionType
else:
    AttentionSettings = Annotated[reduce(or_, map(resolve_name, KINDS.values())), Field(discriminator="kind")]


def register() -> None:
    """Make the attention functions "natural", "natural_gradient" and "tempered" known to transformers.

    Importing this module has done so; a call states that the code after it needs them.
    """
