"""Generate docs/configuration.md from the files in conf/.

    python scripts/write_configuration.py

`tests/test_documentation_site.py` fails if the page is outdated.
"""

from pathlib import Path
from typing import Any

import yaml

from natattn.config.compose import command_defaults, defaults, description, groups
from natattn.storage.atomic import conf_folder
from natattn.training.run_folder import flatten

PAGE = Path(__file__).parents[1] / "docs" / "configuration.md"
# {group: its introduction}; a group without one is an error.
GROUPS = {
    "task": "What is learned. [Data and tasks](data.md) compares them.",
    "model": "The attention type of the candidate arm; the reference always uses `standard`. "
    "[Attention](attention.md) explains them.",
    "size": "Width, depth and context of both arms. `size.n_layer=3` changes one of them.",
    "optim": "The candidate's optimizer. [Optimizers](optimizers.md) lists the updates and the keys.",
    "reference": "The reference arm's optimizer: those of `optim` that read no attention, or `none` for no reference.",
    "data": "Text for `task=language`, images for `vision`, images with captions for `multimodal`.",
    "tokenizer": "How text becomes tokens. Losses per byte compare runs with different tokenizers.",
    "packing": "How documents become sequences.",
    "stabilisers": "Bounds on the energies of both arms.",
    "schedule": "The learning rate over the steps, as a factor of the rate in `optim`.",
    "precision": "Arithmetic of the forward pass of both arms.",
    "tracker": "Where metrics are mirrored; the metrics file is always written.",
    "init": "The initial weights of both arms.",
    "experiment": "A named preset. Anything you pass on the command line overrides it.",
    "study": "What `natattn reproduce study=NAME` trains and compares. [Reproduce](reproduce.md) lists their claims; "
    "[extending](extending.md) explains the keys.",
}
# Groups whose files are too long for a table cell.
WITHOUT_KEYS = frozenset({"optim", "reference", "experiment", "study"})
START = """# Configuration

`natattn train` is composed from small files: one from each folder of `conf/` (a *group*), and the values of
`conf/train.yaml`. On the command line `group=option` selects a file, and `key=value` changes a value:

```bash
natattn train size=pico optim=adamw train.steps=500 optim.learning_rates.hidden=0.001
natattn train size=pico optim=adamw --cfg job  # prints every resolved key; nothing is trained
natattn train --help                           # the groups and options of this page
```

- An unknown key or an invalid value ends the command before anything is built, with one line that names the key and
  what to use.
- `+key=value` adds a key that the file does not contain but the optimizer accepts, such as a rate for one more role;
  `++key=value` sets it in either case.
- `-m` with commas runs a sweep: `natattn train -m optim=adamw,aif seed=0,1` is four runs.
- Values with spaces, commas or brackets need quotes: `'data.train=[a.txt,b.txt]'`.
- A YAML file that you add to one of the folders becomes an option.

`python scripts/write_configuration.py` generates the tables from the files. **Bold** is the default.
"""


def main() -> None:
    """Write the page."""
    PAGE.write_text(page(), encoding="utf-8")
    print(f"written: {PAGE.name}")


def page() -> str:
    """Return the page's text.

    Raises: KeyError for a group that is missing in ``GROUPS``.
    """
    options, chosen = groups(), defaults()
    order = [*GROUPS, *(group for group in options if group not in GROUPS)]
    parts = [START, *(section(group, options[group], chosen.get(group)) for group in order)]
    for command in ("train", "analyze", "reproduce"):
        parts.append(f"## Values of `natattn {command}`\n\n```yaml\n{command_defaults(command).strip()}\n```\n")
    return "\n".join(parts)


def section(group: str, options: tuple[str, ...], default: str | None) -> str:
    """Return the heading and table of a group."""
    with_keys = group not in WITHOUT_KEYS
    lines = [f"## `{group}=`", "", GROUPS[group], "", f"| option | what it is |{' keys |' * with_keys}"]
    lines.append("|---|---|" + "---|" * with_keys)
    for option in options:
        name = f"**`{option}`**" if option == default else f"`{option}`"
        row = f"| {name} | {cell(description(group, option))} |"
        lines.append(f"{row} {keys_of(group, option)} |" if with_keys else row)
    return "\n".join([*lines, ""])


def keys_of(group: str, option: str) -> str:
    """Return `group.key=value` for the content of an option's file, without the keys that identify the option."""
    text = (conf_folder() / group / f"{option}.yaml").read_text(encoding="utf-8")
    content = yaml.safe_load(text) or {}
    content.pop("defaults", None)
    flat = flatten(content if "# @package _global_" in text else {group: content})
    shown = (
        f"`{key}={written(value)}`"
        for key, value in flat.items()
        if not key.endswith(".kind") and (key, value) != (f"{group}.name", option)
    )
    return cell(", ".join(shown)) or "—"


def written(value: Any) -> str:
    """Format a value as on the command line."""
    if isinstance(value, list):
        return "[…]"
    return {"None": "null", "True": "true", "False": "false"}.get(str(value), str(value))


def cell(text: str) -> str:
    """Escape text for a cell of a Markdown table."""
    return text.replace("|", "\\|")


if __name__ == "__main__":
    main()
