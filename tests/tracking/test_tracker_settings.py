from pathlib import Path

import pytest
import yaml
from pydantic import TypeAdapter, ValidationError

from natattn.tracking.settings import OffSettings, TrackerSettings, WandbSettings

ADAPTER: TypeAdapter[WandbSettings | OffSettings] = TypeAdapter(TrackerSettings)
OPTIONS = Path(__file__).parents[2] / "conf" / "tracker"


def compose(option: str) -> dict[str, object]:
    values: dict[str, object] = yaml.safe_load((OPTIONS / f"{option}.yaml").read_text())
    bases = values.pop("defaults", ["_self_"])
    assert isinstance(bases, list)
    for base in bases[:-1]:
        values = compose(base) | values
    return values


@pytest.mark.parametrize(("option", "mode"), [("offline", "offline"), ("online", "online")])
def test_wandb_options(option: str, mode: str) -> None:
    settings = ADAPTER.validate_python(compose(option))
    assert isinstance(settings, WandbSettings)
    assert settings.mode == mode


def test_off_is_a_word_and_not_false() -> None:
    assert ADAPTER.validate_python(compose("off")) == OffSettings(kind="off")


@pytest.mark.parametrize("change", [{"mode": "of"}, {"timeout_seconds": 0}, {"project": ""}, {"colour": "red"}])
def test_wrong_values_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        ADAPTER.validate_python(compose("offline") | change)


@pytest.mark.parametrize("path", sorted(OPTIONS.glob("*.yaml")), ids=lambda path: path.stem)
def test_each_option_says_what_it_is(path: Path) -> None:
    first = path.read_text().splitlines()[0]
    assert first.startswith("# ")
    assert len(first) <= 92
