"""Settings with which a run is resumed."""

from collections.abc import Sequence
from typing import Any

from natattn.config.compose import compose, parse, run_settings, settings_of, validated
from natattn.errors import UserError
from natattn.training.run_folder import covers, flatten
from natattn.training.settings import RunSettings, changeable


def resumed_settings(saved: dict[str, Any], overrides: Sequence[str]) -> RunSettings:
    """The settings to go on with: the saved ones, with what the overrides change and resuming may change.

    Raises: UserError naming a key that was overridden with another value than the run has.
    """
    was = validated(saved, RunSettings)
    return _changed(was, overrides, changeable(was))


def _changed(before: RunSettings, overrides: Sequence[str], allowed: frozenset[str]) -> RunSettings:
    """The settings with the overrides, of which only ``allowed`` keys may have another value.

    Whether they can be trained is asked of the changed ones alone: what is overridden may be what is not possible here.
    """
    composed, saved = (each.model_dump(mode="json") for each in (settings_of(compose(overrides)), before))
    asked, was = flatten(composed), flatten(saved)
    named = {override.key_or_group for override in parse(overrides)}
    if "experiment" in named:
        named |= {key for key in asked if asked[key] != was.get(key)}
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
    whole = {section: composed[section] for section in named & allowed & composed.keys()}
    return run_settings(_with(saved, changed) | whole)


def _with(saved: dict[str, Any], changed: dict[str, Any]) -> dict[str, Any]:
    """The saved configuration with flat keys replaced."""
    result: dict[str, Any] = {key: dict(value) if isinstance(value, dict) else value for key, value in saved.items()}
    for key, value in changed.items():
        section, _, rest = key.partition(".")
        if rest:
            result[section][rest] = value
        else:
            result[section] = value
    return result
