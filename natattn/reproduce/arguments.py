"""The arguments of `natattn reproduce`: which studies, at which budget, on which launcher."""

from collections.abc import Sequence
from dataclasses import dataclass

from natattn import config
from natattn.errors import UserError
from natattn.explain import suggestion
from natattn.reproduce.settings import ReproduceSettings

EVERY = "all"


@dataclass(frozen=True)
class Asked:
    """What was asked for.

    Attributes:
        settings: one for each study.
        launcher: Hydra's overrides of its launcher.
        name: of the folder for the results.
    """

    settings: tuple[ReproduceSettings, ...]
    launcher: tuple[str, ...]
    name: str


def read_arguments(arguments: Sequence[str]) -> Asked:
    """Compose a configuration for every study that is named.

    Raises: UserError naming what is not understood, and the nearest that is.
    """
    valid = config.groups()["study"]
    launcher = tuple(argument for argument in arguments if argument.startswith(("hydra/", "hydra.")))
    named = [argument.partition("=")[2] for argument in arguments if argument.startswith("study=")]
    if not named:
        raise UserError(f"study: needs a value; valid: {EVERY}, {', '.join(valid)}")
    names = list(valid) if named[-1] == EVERY else named[-1].strip("[]").split(",")
    for name in names:
        if name not in valid:
            raise UserError(f"study={name}: no such option; {suggestion(name, (EVERY, *valid))}")
    others = [argument for argument in arguments if argument not in launcher and not argument.startswith("study=")]
    settings = []
    for name in names:
        composed = config.compose([f"study={name}", *config.quote_paths(others)], "reproduce")
        settings.append(config.validated(config.plain_values(composed), ReproduceSettings))
    title = EVERY if named[-1] == EVERY else "_".join(names)
    return Asked(tuple(settings), launcher, f"{title}_{settings[0].budget}")
