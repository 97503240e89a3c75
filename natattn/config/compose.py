"""From the command line to typed settings: finds conf/, composes it with Hydra, and explains what does not fit.

DictConfig stops here: everything below works with frozen, validated objects.
"""

import math
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from natattn.config.base import Settings
from natattn.config.messages import first_line, suggestion, unknown_key, validation_line
from natattn.errors import UserError
from natattn.storage.atomic import CONFIG_NAME, conf_folder
from natattn.storage.redaction import secret_in, secrets

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override
    from omegaconf import DictConfig

    from natattn.training.settings import RunSettings

SettingsType = TypeVar("SettingsType", bound=Settings)
NOT_OF_TRAIN = frozenset({"study"})
MOST_JOBS = 100_000  # of a sweep
_LARGEST = 2**63
_QUOTED = re.compile(r"""^(['"]).*\1$""", re.DOTALL)


@cache
def groups() -> dict[str, tuple[str, ...]]:
    """{group: its options}, in alphabetical order."""
    return {
        folder.name: tuple(sorted(path.stem for path in folder.glob("*.yaml")))
        for folder in sorted(conf_folder().iterdir())
        if folder.is_dir() and any(folder.glob("*.yaml"))
    }


def train_groups() -> dict[str, tuple[str, ...]]:
    """The groups that `natattn train` composes: those of other commands are left out."""
    return {group: options for group, options in groups().items() if group not in NOT_OF_TRAIN}


def description(group: str, option: str) -> str:
    """The one-line comment that every option's file begins with."""
    for line in (conf_folder() / group / f"{option}.yaml").read_text(encoding="utf-8").splitlines():
        if line.startswith("#") and not line.startswith("# @package"):
            return line.removeprefix("#").strip()
    return ""


def defaults() -> dict[str, str]:
    """{group: its option in the defaults list of train.yaml}."""
    import yaml

    entries = yaml.safe_load((conf_folder() / f"{CONFIG_NAME}.yaml").read_text(encoding="utf-8"))["defaults"]
    chosen = {group: option for entry in entries if isinstance(entry, dict) for group, option in entry.items()}
    return {group: option for group, option in chosen.items() if isinstance(option, str)}


def own_values(name: str) -> str:
    """The values of a command's own file with their comments, as text; what only Hydra reads is left out."""
    text = (conf_folder() / f"{name}.yaml").read_text(encoding="utf-8")
    return text.split("\n\n", 1)[1].split("\nhydra:")[0]


def quote_paths(overrides: Iterable[str]) -> list[str]:
    """Quote values that Hydra's grammar would take apart although they name an existing path, or that it cannot parse.

    A value with ``~``, ``=``, ``(`` or ``,`` is no syntax where a file of that name exists.
    """
    return [_quoted_if_needed(override) for override in overrides]


def _quoted_if_needed(override: str) -> str:
    key, equals, value = override.partition("=")
    if not equals or not value or _QUOTED.match(value) or re.fullmatch(r"[\w./+-]*", value):
        return override
    expanded = Path(os.path.expanduser(value))
    names_a_path = _exists(expanded) or ("=" in value and "/" in value)
    if not names_a_path and _parses(override):
        return override
    text = str(expanded) if names_a_path and value.startswith("~") else value
    return f"{key}='{_escaped(text)}'"


def _escaped(text: str) -> str:
    """Text for between Hydra's single quotes: backslashes count only before a quote, and ${ would be resolved."""
    text = re.sub(r"(\\*)'", lambda match: 2 * match.group(1) + "\\'", text)
    text = re.sub(r"(\\+)$", lambda match: 2 * match.group(1), text)
    return text.replace("${", "\\${")


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # such as a name too long to be one
        return False


def _parses(override: str) -> bool:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        OverridesParser.create().parse_override(override)
    except HydraException:
        return False
    return True


def parse(overrides: Sequence[str]) -> list["Override"]:
    """Hydra's reading of the overrides.

    Raises: UserError naming one that is no ``key=value``, or a group option that does not exist.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    parsed = []
    for text in overrides:
        try:
            override = OverridesParser.create().parse_override(text)
        except HydraException:
            raise UserError(f"{text}: not understood; write key=value, with quotes around unusual values") from None
        _check_option(override)
        parsed.append(override)
    return parsed


def jobs(overrides: Sequence[str]) -> list[list[str]]:
    """The overrides of each job of a sweep, as Hydra's basic sweeper will make them; one job where nothing is swept.

    Raises: UserError for a kind of sweep that needs another sweeper, and for more jobs than anyone can wait for.
    """
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.errors import HydraException

    parsed = parse(overrides)
    try:
        if (count := _job_count(parsed)) > MOST_JOBS:
            raise UserError(f"-m: a sweep of {count:,} jobs; valid: at most {MOST_JOBS:,}")
        ((*batch,),) = BasicSweeper.split_arguments(parsed, None)
    except HydraException as error:
        raise UserError(first_line(error)) from None
    return [list(job) for job in batch]


def _job_count(parsed: Sequence["Override"]) -> int:
    """How many jobs a sweep has, without making a list of them."""
    from hydra.core.override_parser.types import RangeSweep

    count = 1
    for override in parsed:
        if override.is_discrete_sweep():
            override.config_loader = _GroupOptions()  # type: ignore[assignment]
            swept = override.value()
            if isinstance(swept, RangeSweep):
                count *= max(0, math.ceil((float(swept.stop or 0) - float(swept.start or 0)) / float(swept.step or 1)))
            else:
                count *= len(list(override.sweep_string_iterator()))
    return count


class _GroupOptions:
    """What Hydra asks for the options that ``optim=glob(*)`` may mean."""

    def get_group_options(self, group: str, results_filter: object = None) -> list[str]:
        """Of a group of ours; none of what is no group."""
        return list(groups().get(group, ()))


def compose(overrides: Sequence[str], name: str = CONFIG_NAME) -> "DictConfig":
    """Compose conf/train.yaml, or the file of another command, with overrides, in Hydra's own way.

    Raises: UserError naming the override that does not fit and the nearest that would.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    parsed = parse(overrides)
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(conf_folder()), version_base="1.3", job_name=name):
        try:
            return hydra_compose(name, overrides=list(overrides))
        except (HydraException, OmegaConfBaseException, ValueError, YAMLError) as error:
            chosen = [text for text, override in zip(overrides, parsed, strict=True) if _group_of(override)]
            try:
                sections = OmegaConf.to_container(hydra_compose(name, overrides=chosen), resolve=False)
            except (HydraException, OmegaConfBaseException, YAMLError):
                raise UserError(first_line(error)) from error
            known = [*(key for key, _ in _walk(sections)), "experiment"]
            for override in parsed:
                key = override.key_or_group
                if (
                    not _group_of(override)
                    and not (override.is_add() or override.is_force_add())
                    and key not in known
                    and not key.startswith("hydra")
                ):
                    raise UserError(unknown_key(key, known)) from error
            raise UserError(first_line(error)) from error


def settings_of(config: "DictConfig") -> "RunSettings":
    """The composed configuration as one frozen, typed object; also checked for impossible combinations.

    Raises: UserError naming key, value and what is valid.
    """
    return run_settings(plain_values(config))


def plain_values(config: "DictConfig") -> dict[str, Any]:
    """What a composed configuration says, without what only Hydra reads.

    Raises: UserError naming a key that needs a value, or cannot be resolved.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    unresolved = OmegaConf.to_container(config, resolve=False)
    missing = [key for key, value in _walk(unresolved) if value == "???" and not key.startswith("hydra.")]
    if missing:
        raise UserError(f"{missing[0]}: needs a value; give {missing[0]}=…")
    try:
        values = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise UserError(first_line(error)) from None
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items() if key not in ("hydra", "experiment")}


def run_settings(values: dict[str, Any]) -> "RunSettings":
    """As ``settings_of``, of what a composed configuration says, or of that of a run folder."""
    from natattn.training.settings import RunSettings

    settings = validated(values, RunSettings)
    settings.check()
    refuse_secrets(settings)
    return settings


def refuse_secrets(settings: Settings) -> None:
    """Settings are saved, shown on pages and mirrored: no password or token of the environment may be among them.

    Raises: UserError naming the key, not the value.
    """
    values = [
        (key, str(value)) for key, value in _walk(settings.model_dump(mode="json")) if not isinstance(value, dict)
    ]
    if secret_in("\n".join(value for _, value in values)) is None:
        return  # one search instead of a hundred
    for key, value in values:
        if found := secret_in(value):
            raise UserError(f"{key}: holds {found}, and would be saved with the run; valid: a value without it")


def refuse_secrets_in_folders(overrides: Sequence[str]) -> None:
    """A run's folder is named by what Hydra is told: it is shown, and so are the names of all that is in it.

    Raises: UserError naming the key, not the value.
    """
    for key, value in ((key, value) for key, _, value in (text.partition("=") for text in overrides)):
        named = next((f"the value of ${name}" for name in secrets() if f"oc.env:{name}" in value), None)
        if key.lstrip("+").startswith("hydra.") and (found := named or secret_in(value)):
            raise UserError(f"{key}: holds {found}, and would name a folder; valid: a value without it")


def validated(values: dict[str, Any], schema: type[SettingsType]) -> SettingsType:
    """Plain values → settings.

    Raises: UserError naming the first key that does not fit.
    """
    from pydantic import ValidationError

    try:
        settings = schema.model_validate(values)
    except ValidationError as error:
        raise UserError(validation_line(error.errors()[0], values, conf_folder() / "experiment")) from None
    _check_numbers(values, settings.model_dump())
    return settings


def _check_numbers(given: Any, taken: Any, key: str = "") -> None:
    """Refuse what pydantic lets pass: true and false for 1 and 0, and whole numbers that nothing below can hold.

    Raises: UserError naming the key.
    """
    if isinstance(given, bool) and not isinstance(taken, bool):
        raise UserError(f"{key}={str(given).lower()}: valid: a number")
    if isinstance(given, int) and abs(given) >= _LARGEST:
        raise UserError(f"{key}={given}: valid: whole numbers between -2**63 and 2**63")
    if isinstance(given, dict) and isinstance(taken, dict):
        for name, inner in given.items():
            _check_numbers(inner, taken.get(name), f"{key}.{name}".lstrip("."))
    elif isinstance(given, list | tuple) and isinstance(taken, list | tuple):
        for inner, inner_taken in zip(given, taken, strict=False):
            _check_numbers(inner, inner_taken, key)


def _check_option(override: "Override") -> None:
    group = _group_of(override)
    if group is None or override.is_sweep_override() or override.is_delete():
        return
    option = override.value()
    if not isinstance(option, str) or option not in groups()[group]:
        raise UserError(
            f"{group}={override.get_value_element_as_str()}: no such option; "
            + suggestion(str(option), groups()[group])
        )


def _group_of(override: "Override") -> str | None:
    group = override.key_or_group
    return group if group in groups() else None


def _walk(values: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of every section and value of a nested configuration."""
    if isinstance(values, dict):
        for key, child in values.items():
            dotted = f"{prefix}.{key}".lstrip(".")
            yield dotted, child
            yield from _walk(child, dotted)
