"""From the command line to typed settings: finds conf/, composes it with Hydra, and explains what does not fit.

DictConfig stops here: everything below works with frozen, validated objects.
"""

import difflib
import re
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from natattn.errors import UserError
from natattn.settings import Settings

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override
    from omegaconf import DictConfig

    from natattn.training.settings import RunSettings

CONFIG_NAME = "train"
SettingsType = TypeVar("SettingsType", bound=Settings)
_QUOTED = re.compile(r"""^(['"]).*\1$""", re.DOTALL)


@cache
def conf_folder() -> Path:
    """Where the configuration lives: inside an installed package, else beside it in a checkout.

    Raises: UserError where neither exists.
    """
    package = Path(__file__).resolve().parent
    for folder in (package / "conf", package.parent / "conf"):
        if (folder / f"{CONFIG_NAME}.yaml").is_file():
            return folder
    raise UserError(f"{package}: the installation has no conf/ folder; install natattn again")


@cache
def groups() -> dict[str, tuple[str, ...]]:
    """{group: its options}, in alphabetical order."""
    return {
        folder.name: tuple(sorted(path.stem for path in folder.glob("*.yaml")))
        for folder in sorted(conf_folder().iterdir())
        if folder.is_dir() and any(folder.glob("*.yaml"))
    }


def description(group: str, option: str) -> str:
    """The one-line comment that every option's file begins with."""
    for line in (conf_folder() / group / f"{option}.yaml").read_text(encoding="utf-8").splitlines():
        if line.startswith("#") and not line.startswith("# @package"):
            return line.removeprefix("#").strip()
    return ""


def quote_paths(overrides: Iterable[str]) -> list[str]:
    """Quote values that Hydra's grammar would take apart although they name an existing path, or that it cannot parse.

    A value with ``~``, ``=``, ``(`` or ``,`` is no syntax where a file of that name exists.
    """
    return [_quoted_if_needed(override) for override in overrides]


def _quoted_if_needed(override: str) -> str:
    key, equals, value = override.partition("=")
    if not equals or not value or _QUOTED.match(value) or re.fullmatch(r"[\w./+-]*", value):
        return override
    expanded = Path(value).expanduser()
    names_a_path = _exists(expanded) or ("=" in value and "/" in value)
    if not names_a_path and _parses(override):
        return override
    text = str(expanded) if names_a_path and value.startswith("~") else value
    return f"{key}='" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


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

    Raises: UserError for a kind of sweep that needs another sweeper.
    """
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.errors import HydraException

    try:
        ((*batch,),) = BasicSweeper.split_arguments(parse(overrides), None)
    except HydraException as error:
        raise UserError(str(error).splitlines()[0]) from None
    return [list(job) for job in batch]


def compose(overrides: Sequence[str]) -> "DictConfig":
    """Compose conf/train.yaml with overrides, in Hydra's own way.

    Raises: UserError naming the override that does not fit and the nearest that would.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    parsed = parse(overrides)
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(conf_folder()), version_base="1.3", job_name=CONFIG_NAME):
        try:
            return hydra_compose(CONFIG_NAME, overrides=list(overrides))
        except (HydraException, OmegaConfBaseException, ValueError) as error:
            chosen = [text for text, override in zip(overrides, parsed, strict=True) if _group_of(override)]
            try:
                known = _keys(hydra_compose(CONFIG_NAME, overrides=chosen))
            except (HydraException, OmegaConfBaseException):
                raise UserError(_first_line(error)) from error
            for override in parsed:
                key = override.key_or_group
                if (
                    not _group_of(override)
                    and not override.is_add()
                    and key not in known
                    and not key.startswith("hydra")
                ):
                    raise UserError(unknown_key(key, [*known, "experiment"])) from error
            raise UserError(_first_line(error)) from error


def settings_of(config: "DictConfig") -> "RunSettings":
    """The composed configuration as one frozen, typed object; also checked for impossible combinations.

    Raises: UserError naming key, value and what is valid.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    missing = _missing_keys(OmegaConf.to_container(config, resolve=False))
    if missing:
        raise UserError(f"{missing[0]}: needs a value; give {missing[0]}=…")
    try:
        values = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise UserError(_first_line(error)) from None
    assert isinstance(values, dict)
    return _run_settings({str(key): value for key, value in values.items() if key not in ("hydra", "experiment")})


def _run_settings(values: dict[str, Any]) -> "RunSettings":
    from natattn.training.settings import RunSettings

    settings = validated(values, RunSettings)
    settings.check()
    return settings


def validated(values: dict[str, Any], schema: type[SettingsType]) -> SettingsType:
    """Plain values → settings.

    Raises: UserError naming the first key that does not fit.
    """
    from pydantic import ValidationError

    try:
        return schema.model_validate(values)
    except ValidationError as error:
        raise UserError(_explain(error.errors()[0], values)) from None


def resumed_settings(saved: dict[str, Any], overrides: Sequence[str]) -> "RunSettings":
    """The settings to go on with: the saved ones, with what the overrides change and resuming may change.

    Raises: UserError naming a key that was overridden with another value than the run has.
    """
    from natattn.training.run_folder import covers, flatten
    from natattn.training.settings import changeable

    asked = flatten(settings_of(compose(overrides)).model_dump(mode="json"))
    named = {override.key_or_group for override in parse(overrides)}
    was = flatten(saved)
    if "experiment" in named:
        named |= {key for key in asked if asked[key] != was.get(key)}
    allowed = changeable(_run_settings(saved))
    changed = {}
    for key in sorted(asked.keys() | was.keys()):
        if not covers(frozenset(named), key) or asked.get(key) == was.get(key):
            continue
        if not covers(allowed, key):
            raise UserError(
                f"{key}={asked.get(key)}: the run has {key}={was.get(key)}; resuming may change only "
                + ", ".join(sorted(allowed - {"resume"}))
            )
        changed[key] = asked.get(key)
    return _run_settings(_with(saved, changed, allowed))


def _with(saved: dict[str, Any], changed: dict[str, Any], allowed: frozenset[str]) -> dict[str, Any]:
    """The saved configuration with flat keys replaced; a section that may change as a whole is rebuilt from them."""
    result: dict[str, Any] = {key: dict(value) if isinstance(value, dict) else value for key, value in saved.items()}
    for section in {key.partition(".")[0] for key in changed} & allowed:
        if isinstance(result[section], dict):
            result[section] = {}
    for key, value in changed.items():
        section, _, rest = key.partition(".")
        if rest:
            result[section][rest] = value
        else:
            result[section] = value
    return result


def unknown_key(key: str, known: Sequence[str]) -> str:
    """The line for a key that nothing reads: the nearest known one, and the keys that stand beside it."""
    parent = key.rpartition(".")[0]
    if parent not in known:
        parent = ""
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    siblings = [other for other in known if other.rpartition(".")[0] == parent]
    return (
        f"{key}: unknown key; "
        + (f"did you mean {near[0]}? " if near else "")
        + f"valid: {', '.join(sorted(siblings))}"
    )


def _suggestion(word: str, valid: Sequence[str]) -> str:
    near = difflib.get_close_matches(word, valid, n=1, cutoff=0.6)
    return (f"did you mean {near[0]}? " if near else "") + f"valid: {', '.join(valid)}"


def _check_option(override: "Override") -> None:
    group = _group_of(override)
    if group is None or override.is_sweep_override() or override.is_delete():
        return
    option = override.value()
    if option is None and group == "experiment":
        return  # no experiment
    if not isinstance(option, str) or option not in groups()[group]:
        raise UserError(
            f"{group}={override.get_value_element_as_str()}: no such option; "
            + _suggestion(str(option), groups()[group])
        )


def _group_of(override: "Override") -> str | None:
    group = override.key_or_group
    return group if group in groups() else None


def _keys(config: "DictConfig", prefix: str = "") -> list[str]:
    """Dotted keys of a composed configuration, sections included."""
    from omegaconf import DictConfig

    found = []
    for key in config:
        found.append(f"{prefix}{key}")
        child = config._get_node(key)
        if isinstance(child, DictConfig) and not child._is_none() and not child._is_missing():
            found.extend(_keys(child, f"{prefix}{key}."))
    return found


def _missing_keys(values: Any, prefix: str = "") -> list[str]:
    """Dotted keys whose value is ???, without resolving what refers to them."""
    if isinstance(values, dict):
        return [key for name, child in values.items() for key in _missing_keys(child, f"{prefix}.{name}".lstrip("."))]
    return [prefix] if values == "???" and not prefix.startswith("hydra.") else []


def _explain(error: Any, values: dict[str, Any]) -> str:
    """One line for a validation error."""
    key, parent = _locate(error["loc"], values)
    if error["type"] == "extra_forbidden":
        prefix, _, last = key.rpartition(".")
        siblings = _fields_at(error, parent, last)
        return f"{key}: unknown key; {_suggestion(last, siblings)}" + _place_in_experiment(last)
    if error["type"] == "missing":
        return f"{key}: missing"
    message = re.sub(r"^(Input should be|String should|Value error,) ?", "", error["msg"])
    value = error["input"]
    shown = f"{key}={value}" if not isinstance(value, dict | list) else key
    return f"{shown}: valid: {message}" if " should " in error["msg"] else f"{shown}: {message}"


def _locate(location: Sequence[int | str], values: Any) -> tuple[str, Any]:
    """Dotted key of an error and the mapping it is in: pydantic's path without the tags of unions."""
    path: list[str] = []
    for index, part in enumerate(location):
        last = index == len(location) - 1
        if isinstance(values, dict) and part in values:
            path.append(str(part))
            if not last:
                values = values[part]
        elif isinstance(values, list | tuple) and isinstance(part, int):
            path.append(str(part))
            if not last and part < len(values):
                values = values[part]
        elif last and not (isinstance(values, dict) and part == values.get("kind")):
            path.append(str(part))
    return ".".join(path), values


def _fields_at(error: Any, parent: Any, unknown: str) -> list[str]:
    return sorted(str(key) for key in parent if key != unknown) if isinstance(parent, dict) else []


def _place_in_experiment(key: str) -> str:
    """Where an experiment file names a key, for files that have gone stale: " (experiment/quick.yaml, line 3)"."""
    for path in sorted((conf_folder() / "experiment").glob("*.yaml")):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            if re.match(rf"\s*{re.escape(key)}\s*:", line):
                return f" (experiment/{path.name}, line {number})"
    return ""


def _first_line(error: BaseException) -> str:
    """The telling line of a Hydra or OmegaConf error."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
