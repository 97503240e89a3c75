"""The data of a run as run.json has it: what its text is like, or what chance reaches; and the unit of its losses."""

from dataclasses import dataclass, field
from typing import Any

from natattn.analysis import facts as read

UNITS = ("token", "image", "pair")


@dataclass(frozen=True)
class TextFacts:
    """The text of a run. Entropies in nats/token, of the validation text; `floor` where it is known exactly.

    `held_out_bigram_entropy` is the loss of a bigram model of the training text, `plug_in_bigram_entropy` (None in old
    run folders) the entropy of the validation text's own counts.
    """

    tokens_per_byte: float
    unigram_entropy: float
    held_out_bigram_entropy: float
    plug_in_bigram_entropy: float | None
    floor: float | None


@dataclass(frozen=True)
class DataFacts:
    """The data of a run: `text`, or with another task what `chance` reaches, by the name of the metric."""

    name: str
    fingerprint: str
    text: TextFacts | None = None
    chance: dict[str, float] = field(default_factory=dict)

    @property
    def levels(self) -> dict[str, float]:
        """Losses that need no attention, by name."""
        if self.text is None:
            return {"chance": self.chance["loss"]}
        levels = {"unigram entropy": self.text.unigram_entropy, "bigram model": self.text.held_out_bigram_entropy}
        return levels | ({} if self.text.floor is None else {"floor": self.text.floor})


def unit_of(facts: dict[str, Any]) -> str:
    """Return what the losses of a run are means over: token (of runs older than the other tasks too), image or pair.

    Raises: ValueError for anything else.
    """
    unit = str(facts.get("unit", "token"))
    if unit not in UNITS:
        raise ValueError(f"unit: valid: {', '.join(UNITS)}")
    return unit


def data_of(facts: dict[str, Any]) -> DataFacts:
    """Return the description of the data in run.json.

    Raises: KeyError or ValueError where that is missing or of another kind.
    """
    data = read.mapping(facts["data"])
    name, fingerprint = read.text(data["name"]), read.text(data["fingerprint"])
    if unit_of(facts) != "token":
        chance = {key: read.known(read.number(value), key) for key, value in read.mapping(data["chance"]).items()}
        read.known(chance.get("loss"), "the loss of chance")
        return DataFacts(name, fingerprint, chance=chance)
    tokens, size = (read.whole(data[key]) or 0 for key in ("validation_tokens", "validation_bytes"))
    if tokens < 1 or size < 1:
        raise ValueError("its validation text is empty")
    text = TextFacts(
        tokens_per_byte=tokens / size,
        unigram_entropy=read.known(read.number(data["unigram_entropy"]), "unigram_entropy"),
        held_out_bigram_entropy=read.known(read.number(data["held_out_bigram_entropy"]), "held_out_bigram_entropy"),
        plug_in_bigram_entropy=read.number(data.get("plug_in_bigram_entropy")),
        floor=read.number(data.get("floor")),
    )
    return DataFacts(name, fingerprint, text)
