"""The claims ledger: what the papers and the author's code say, as formulas, and how each is tested."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Claim:
    """One row of the ledger.

    Attributes:
        id: such as R1 or K3.
        statement: in one sentence, as the source means it.
        formula: as it is tested, in plain text.
        definition: what had to be chosen where the source leaves it open, and why; empty where nothing was.
        source: the paper or program, and where in it.
        study: the study that tests it; empty where none does yet.
    """

    id: str
    statement: str
    formula: str
    definition: str
    source: str
    study: str
