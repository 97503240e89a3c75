"""Write docs/configuration.md from the files in conf/: every group and option.

    python scripts/write_configuration.py

`tests/test_documentation.py` fails where the page is older than the files.
"""

from pathlib import Path
from typing import Any

import yaml

from natattn.config import compose as config
from natattn.storage.atomic import conf_folder
from natattn.training.run_folder import flatten

PAGE = Path(__file__).parents[1] / "docs" / "configuration.md"
# {group: what is chosen by it}; a group without a line here is an error.
GROUPS = {
    "task": "What is learned. [Tasks](tasks.md) says what each has and lacks.",
    "model": "The attention type of the candidate arm; the reference always has `standard`. "
    "[Natural attention](natural_attention.md) says what they are.",
    "size": "Width, depth and context of both arms. `size.n_layer=3` changes one of them.",
    "optim": "The candidate's optimizer. [Optimizers](optimizers.md) has the updates and the keys.",
    "reference": "The reference arm's optimizer: those of `optim` that read no attention, or `none` for no reference.",
    "data": "Text for `task=language`, images for `vision`, images with captions for `multimodal`.",
    "tokenizer": "How text becomes tokens. Losses per byte compare runs with different ones.",
    "packing": "How documents become sequences.",
    "stabilisers": "What bounds the energies of both arms.",
    "schedule": "The learning rate over the steps, as a factor of that in `optim`.",
    "precision": "Arithmetic of the forward pass, of both arms.",
    "tracker": "Where the metrics are mirrored; the metrics file is always written.",
    "init": "The weights that both arms start from.",
    "experiment": "A set of choices and values under one name; what you give beside it holds.",
    "study": "What `natattn reproduce study=NAME` trains and compares. [Reproduce](reproduce.md) has their claims; "
    "[a study of your own](extending/study.md) the keys.",
}
# Groups whose files are too long for a cell; the page that explains their keys is named above.
WITHOUT_KEYS = frozenset({"optim", "reference", "experiment", "study"})
START = """# Configuration

`natattn train` is composed of small files: one from each folder of `conf/`, a *group*, and the values of
`conf/train.yaml`. On the command line `group=option` chooses a file, and `key=value` changes a value of the whole:

```bash
natattn train size=pico optim=adamw train.steps=500 optim.learning_rates.hidden=0.001
natattn train size=pico optim=adamw --cfg job  # what that comes to, every key of it; nothing is trained
natattn train --help                           # the groups and options of this page
```

- A key that does not exist, or a value that does not fit, ends the command before anything is built, with one line that
  names the key and what is valid.
- `+key=value` adds a key that the file does not have but the optimizer knows, such as a rate for one more role;
  `++key=value` sets it whether it is there or not.
- `-m` with commas makes a sweep: `natattn train -m optim=adamw,aif seed=0,1` are four runs.
- Values with spaces, commas or brackets want quotes: `'data.train=[a.txt,b.txt]'`.
- A file of yours in one of the folders is an option from then on.

The tables are written from the files by `python scripts/write_configuration.py`. **Bold** is the default.
"""


def main() -> None:
    """Write the page."""
    PAGE.write_text(page(), encoding="utf-8")
    print(f"written: {PAGE.name}")


def page() -> str:
    """The page's text.

    Raises: KeyError for a group that has no line in ``GROUPS``.
    """
    groups, defaults = config.groups(), config.defaults()
    order = [*GROUPS, *(group for group in groups if group not in GROUPS)]
    parts = [START, *(section(group, groups[group], defaults.get(group)) for group in order)]
    for command in ("train", "analyze", "reproduce"):
        parts.append(f"## Values of `natattn {command}`\n\n```yaml\n{config.own_values(command).strip()}\n```\n")
    return "\n".join(parts)


def section(group: str, options: tuple[str, ...], default: str | None) -> str:
    """The heading and table of a group."""
    with_keys = group not in WITHOUT_KEYS
    lines = [f"## `{group}=`", "", GROUPS[group], "", f"| option | what it is |{' keys |' * with_keys}"]
    lines.append("|---|---|" + "---|" * with_keys)
    for option in options:
        name = f"**`{option}`**" if option == default else f"`{option}`"
        row = f"| {name} | {cell(config.description(group, option))} |"
        lines.append(f"{row} {keys_of(group, option)} |" if with_keys else row)
    return "\n".join([*lines, ""])


def keys_of(group: str, option: str) -> str:
    """`group.key=value` of an option's file, but for what only says which option it is."""
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
    """A value as the command line has it."""
    if isinstance(value, list):
        return "[…]"
    return {"None": "null", "True": "true", "False": "false"}.get(str(value), str(value))


def cell(text: str) -> str:
    """Text for a cell of a Markdown table."""
    return text.replace("|", "\\|")


if __name__ == "__main__":
    main()
