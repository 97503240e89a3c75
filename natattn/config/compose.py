"""Compose conf/ with Hydra and validate it; every mistake is a UserError of one line.

DictConfig stops here: all other rooms work with frozen, validated objects.
"""

import itertools
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

SettingsType = TypeVar("SettingsType", bound=Settings)
NOT_OF_TRAIN = frozenset({"study"})
MOST_JOBS = 100_000  # of a sweep
_LARGEST = 2**63
_QUOTED = re.compile(r"""^(['"]).*\1$""", re.DOTALL)


@cache
def groups() -> dict[str, tuple[str, ...]]:
    """Return {group: its options}, in alphabetical order."""
    return {
        folder.name: tuple(sorted(path.stem for path in folder.glob("*.yaml")))
        for folder in sorted(conf_folder().iterdir())
        if folder.is_dir() and any(folder.glob("*.yaml"))
    }


def train_groups() -> dict[str, tuple[str, ...]]:
    """Return the groups of `natattn train`, without those of other commands."""
    return {group: options for group, options in groups().items() if group not in NOT_OF_TRAIN}


def description(group: str, option: str) -> str:
    """Return the one-line comment at the start of an option's file."""
    for line in (conf_folder() / group / f"{option}.yaml").read_text(encoding="utf-8").splitlines():
        if line.startswith("#") and not line.startswith("# @package"):
            return line.removeprefix("#").strip()
    return ""


def defaults() -> dict[str, str]:
    """Return {group: its default option}, from train.yaml."""
    import yaml

    entries = yaml.safe_load((conf_folder() / f"{CONFIG_NAME}.yaml").read_text(encoding="utf-8"))["defaults"]
    chosen = {group: option for entry in entries if isinstance(entry, dict) for group, option in entry.items()}
    return {group: option for group, option in chosen.items() if isinstance(option, str)}


def command_defaults(name: str) -> str:
    """Return the values and comments of a command's own file as text, without the section ``hydra``."""
    text = (conf_folder() / f"{name}.yaml").read_text(encoding="utf-8")
    return text.split("\n\n", 1)[1].split("\nhydra:")[0]


def quote_paths(overrides: Iterable[str]) -> list[str]:
    """Quote values that name an existing path, or that Hydra's grammar cannot parse.

    A value with ``~``, ``=``, ``(`` or ``,`` is not syntax if a file of that name exists.
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
    """Escape text for Hydra's single quotes: backslashes count only before a quote, and ${ would be resolved."""
    text = re.sub(r"(\\*)'", lambda match: 2 * match.group(1) + "\\'", text)
    text = re.sub(r"(\\+)$", lambda match: 2 * match.group(1), text)
    return text.replace("${", "\\${")


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # for example a name that is too long
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
    """Parse overrides with Hydra's grammar.

    Raises: UserError for one that is not ``key=value``, or for a group option that does not exist.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    parser = OverridesParser.create()
    parsed = []
    for text in overrides:
        try:
            override = parser.parse_override(text)
            override.config_loader = _GroupOptions()  # type: ignore[assignment]  # for optim=glob(*)
        except HydraException:
            raise UserError(f"{text}: not understood; write key=value, with quotes around unusual values") from None
        _check_option(override)
        parsed.append(override)
    return parsed


def sweep_jobs(overrides: Sequence[str]) -> list[list[str]]:
    """Return the overrides of every job of a sweep; one job if nothing is swept.

    Raises: UserError for a kind of sweep that needs another sweeper, and for more than ``MOST_JOBS`` jobs.
    """
    from hydra.core.override_parser.types import RangeSweep
    from hydra.errors import HydraException

    choices: dict[str, list[str]] = {}
    count = 1
    try:
        swept = []
        for text, override in zip(overrides, parse(overrides), strict=True):
            choices[key := override.get_key_element()] = [text]  # of a repeated key the last override holds
            if override.is_sweep_override():
                if not override.is_discrete_sweep():
                    kind = override.value_type.name if override.value_type else "sweep"
                    raise UserError(f"{text}: {kind} needs another sweeper. Use choices (a,b) or range(start,stop).")
                sweep = override.value()
                if isinstance(sweep, RangeSweep):  # counted without listing it
                    start, stop, step = (float(bound or 0) for bound in (sweep.start, sweep.stop, sweep.step))
                    count *= max(0, math.ceil((stop - start) / (step or 1)))
                else:
                    count *= len(list(override.sweep_string_iterator()))
                swept.append((key, override))
        if count > MOST_JOBS:
            raise UserError(f"-m: a sweep of {count:,} jobs; valid: at most {MOST_JOBS:,}")
        for key, override in swept:
            choices[key] = [f"{key}={value}" for value in override.sweep_string_iterator()]
    except HydraException as error:
        raise UserError(first_line(error)) from None
    return [list(job) for job in itertools.product(*choices.values())]


class _GroupOptions:
    """The part of Hydra's configuration loader that ``optim=glob(*)`` needs."""

    def get_group_options(self, group: str, results_filter: object = None) -> list[str]:
        """Return the options of a group; none for any other key."""
        return list(groups().get(group, ()))


def compose(overrides: Sequence[str], name: str = CONFIG_NAME, *, with_hydra: bool = False) -> "DictConfig":
    """Compose conf/train.yaml, or the file of another command, with overrides.

    Args:
        with_hydra: keep the section ``hydra``, which names folders and the launcher.

    Raises: UserError for an override that does not fit, with the closest match.
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
            return hydra_compose(name, overrides=list(overrides), return_hydra_config=with_hydra)
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


def folder_of(composed: "DictConfig", job: int | None = -1) -> Path:
    """Return the folder of a run composed with ``with_hydra``.

    Args:
        job: index of the job in a sweep, None for the folder of the sweep, -1 for a single run.
    """
    from omegaconf import OmegaConf, open_dict, read_write
    from omegaconf.errors import OmegaConfBaseException

    hydra = composed.hydra
    try:
        if job == -1:
            return Path(hydra.run.dir)
        if job is None:
            return Path(hydra.sweep.dir)
        with read_write(hydra), open_dict(hydra):
            hydra.job.num, hydra.job.id = job, str(job)
        return Path(hydra.sweep.dir) / str(OmegaConf.select(hydra, "sweep.subdir"))
    except OmegaConfBaseException as error:
        raise UserError(first_line(error)) from None


def is_launched_here(composed: "DictConfig") -> bool:
    """Return whether a sweep composed with ``with_hydra`` runs in this process, one job after the other."""
    return str(composed.hydra.launcher["_target_"]).endswith("BasicLauncher")


def plain_values(config: "DictConfig") -> dict[str, Any]:
    """Return a composed configuration as plain values, without the sections ``hydra`` and ``experiment``.

    Raises: UserError for a key that needs a value or cannot be resolved.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    config = OmegaConf.masked_copy(config, [str(key) for key in config if key not in ("hydra", "experiment")])
    unresolved = OmegaConf.to_container(config, resolve=False)
    missing = [key for key, value in _walk(unresolved) if value == "???"]
    if missing:
        raise UserError(f"{missing[0]}: needs a value; give {missing[0]}=…")
    try:
        values = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise UserError(first_line(error)) from None
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def refuse_secrets(settings: Settings) -> None:
    """Refuse settings that contain a password or a token, because they are saved, shown on pages and mirrored.

    Raises: UserError with the key, not the value.
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
    """Refuse overrides of ``hydra`` that contain a secret, because they name folders, which are shown.

    Raises: UserError with the key, not the value.
    """
    for key, value in ((key, value) for key, _, value in (text.partition("=") for text in overrides)):
        named = next((f"the value of ${name}" for name in secrets() if f"oc.env:{name}" in value), None)
        if key.lstrip("+").startswith("hydra.") and (found := named or secret_in(value)):
            raise UserError(f"{key}: holds {found}, and would name a folder; valid: a value without it")


def validated(values: dict[str, Any], schema: type[SettingsType]) -> SettingsType:
    """Turn plain values into settings.

    Raises: UserError for the first key that does not fit.
    """
    from pydantic import ValidationError

    try:
        settings = schema.model_validate(values)
    except ValidationError as error:
        raise UserError(validation_line(error.errors()[0], values, conf_folder() / "experiment")) from None
    _check_numbers(values, settings.model_dump())
    return settings


def _check_numbers(given: Any, taken: Any, key: str = "") -> None:
    """Refuse what pydantic accepts: true and false for 1 and 0, and integers outside of 64 bits."""
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
    """Yield (dotted key, value) for every section and value of a nested configuration."""
    if isinstance(values, dict):
        for key, child in values.items():
            dotted = f"{prefix}.{key}".lstrip(".")
            yield dotted, child
            yield from _walk(child, dotted)
