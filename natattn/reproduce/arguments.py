"""The arguments of `natattn reproduce`: which studies, at which budget, on which launcher."""

from collections.abc import Sequence
from dataclasses import dataclass

from natattn.config.compose import compose, groups, plain_values, quote_paths, validated
from natattn.config.messages import suggestion
from natattn.errors import UserError
from natattn.reproduce.claims import CLAIMS
from natattn.reproduce.settings import ReproduceSettings, StudySettings

EVERY = "all"


@dataclass(frozen=True)
class Request:
    """What was asked for.

    Attributes:
        settings: one for each study.
        launcher: Hydra's overrides of its launcher.
        name: of the folder for the results.
    """

    settings: tuple[ReproduceSettings, ...]
    launcher: tuple[str, ...]
    name: str


def read_arguments(arguments: Sequence[str]) -> Request:
    """Compose a configuration for every study that is named.

    Raises: UserError naming what is not understood, and the nearest that is.
    """
    valid = groups()["study"]
    launcher = tuple(argument for argument in arguments if argument.startswith(("hydra/", "hydra.")))
    named = [argument.partition("=")[2] for argument in arguments if argument.startswith("study=")]
    if not named:
        raise UserError(f"study: needs a value; valid: {EVERY}, {', '.join(valid)}")
    names = list(dict.fromkeys(named[-1].strip("[]").split(",")))
    if EVERY in names:
        names = list(valid)
    for name in names:
        if name not in valid:
            raise UserError(f"study={name}: no such option; {suggestion(name, (EVERY, *valid))}")
    others = [argument for argument in arguments if argument not in launcher and not argument.startswith("study=")]
    settings = []
    for name in names:
        composed = plain_values(compose([f"study={name}", *quote_paths(others)], "reproduce"))
        if len(names) == len(valid) > 1 and composed["budget"] not in composed["study"].get("budgets", {}):
            continue  # of every study those that have the budget
        settings.append(validated(composed, ReproduceSettings))
        _check_names(settings[-1].study)
    if not settings:
        raise UserError(f"study={named[-1]}: none has this budget")
    title = EVERY if set(names) == set(valid) else "_".join(names)
    return Request(tuple(settings), launcher, f"{title}_{settings[0].budget}")


def _check_names(study: StudySettings) -> None:
    """Claims and judges that a study names are there. Raises: UserError naming the nearest."""
    from natattn.reproduce.judges import JUDGES

    for claim in (comparison.claim for comparison in study.comparisons):
        if claim is not None and claim not in CLAIMS:
            raise UserError(f"study={study.name}: claim {claim}: not in the ledger; {suggestion(claim, list(CLAIMS))}")
    for judge in (judge for analysis in study.analyses.values() for judge in analysis.judges):
        if judge not in JUDGES:
            raise UserError(f"study={study.name}: judge {judge}: no such judge; {suggestion(judge, list(JUDGES))}")
