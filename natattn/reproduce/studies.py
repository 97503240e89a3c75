"""A study's arms with their placebos and products, and the trials that it consists of."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

from natattn.reproduce.settings import ArmSettings, Overrides, StudySettings

SEPARATOR = ":"  # between an arm and its placebo, or the names of a product


@dataclass(frozen=True)
class Arm:
    """One arm of a study, its product taken apart.

    Attributes:
        name: arm, arm:placebo or arm:one:other.
        family: the arm of the study's file that it comes from.
        tuned_as: the arm whose tuned value it trains with: itself, or of a placebo its arm; None where none is tuned.
        of_run: name inside runs that have two arms; None for the candidate.
        corpora, seeds: that the table has of it.
        is_placebo: whether it stands in for another arm without what that arm claims to use.
    """

    name: str
    family: str
    overrides: Overrides
    tuned_as: str | None
    of_run: str | None
    corpora: tuple[str, ...]
    seeds: tuple[int, ...]
    is_placebo: bool = False


@dataclass(frozen=True)
class Trial:
    """One run of a study, by what tells it from the study's others; ``rate`` is the tuned key's value."""

    corpus: str
    arm: str
    rate: float | None
    seed: int


def arms_of(study: StudySettings) -> dict[str, Arm]:
    """Every arm by name, in the order of the file, each followed by its placebos."""
    return {arm.name: arm for family, settings in study.arms.items() for arm in _expanded(study, family, settings)}


def _expanded(study: StudySettings, family: str, settings: ArmSettings) -> Iterator[Arm]:
    for chosen in product(*(dimension.items() for dimension in settings.product)):
        name = SEPARATOR.join([family, *(part for part, _ in chosen)])
        overrides = (*settings.overrides, *(text for _, added in chosen for text in added))
        corpora = tuple(corpus for corpus in study.corpora if settings.corpora is None or corpus in settings.corpora)
        tuned_as = name if settings.tuned else None
        arm = Arm(name, family, overrides, tuned_as, settings.of_run, corpora, settings.seeds or study.seeds)
        yield arm
        for placebo, added in settings.placebos.items():
            yield replace(
                arm, name=f"{name}{SEPARATOR}{placebo}", overrides=(*overrides, *added), is_placebo=True
            )  # fmt: skip


def placebos_of(arms: dict[str, Arm], name: str) -> list[str]:
    """Names of the arm's placebos."""
    return [arm.name for arm in arms.values() if arm.is_placebo and arm.name.rpartition(SEPARATOR)[0] == name]


def overrides_of(study: StudySettings, arm: Arm, trial: Trial) -> list[str]:
    """All overrides of a trial but those of its files."""
    rate = [f"{study.tuning.key}={trial.rate:g}"] if study.tuning is not None and trial.rate is not None else []
    return [
        *study.base, *study.corpora[trial.corpus].overrides, *arm.overrides, *rate, *study.of_budget,
        f"seed={trial.seed}",
    ]  # fmt: skip
