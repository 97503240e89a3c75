"""What must never be shown or saved: passwords in addresses, and the secrets of this process's environment."""

import os
import re

HIDDEN = "…"
_PASSWORD_IN_ADDRESS = re.compile(r"(:/{1,2})[^/\s@'\"]+@")  # one slash is left where the address was taken for a path
_NAME_OF_A_SECRET = re.compile(
    r"(^|_)(TOKEN|(API|ACCESS)?KEY|SECRET|PASS|PASSWORD|PASSWD|PAT|CREDENTIALS?)$", re.IGNORECASE
)
_SHORTEST = 16  # characters: a shorter value may stand in places that have nothing to do with it


def secrets() -> dict[str, str]:
    """{name: value} of the environment variables whose name says that they are secret: HF_TOKEN, WANDB_API_KEY, …"""
    return {
        name: value
        for name, value in os.environ.items()
        if len(value) >= _SHORTEST and _NAME_OF_A_SECRET.search(name) and not _is_a_path(value)
    }


def redacted(text: str) -> str:
    """The text without passwords in addresses and without values of secret environment variables."""
    for value in sorted(secrets().values(), key=len, reverse=True):
        text = text.replace(value, HIDDEN)
    return _PASSWORD_IN_ADDRESS.sub(rf"\1{HIDDEN}@", text)


def secret_in(text: str) -> str | None:
    """What the text gives away, in words; None for nothing."""
    for name, value in secrets().items():
        if value in text:
            return f"the value of ${name}"
    return "a password in an address" if _PASSWORD_IN_ADDRESS.search(text) else None


def one_line(text: str) -> str:
    """The text on one line, with what would move a terminal's cursor or turn its writing around made visible."""
    return "".join(letter if letter.isprintable() else _visible(letter) for letter in text)


def _visible(letter: str) -> str:
    """As Python writes it inside quotes; what cannot be printed at all (half a surrogate pair) too."""
    return letter.encode("unicode_escape").decode("ascii")


def _is_a_path(value: str) -> bool:
    """SSH_KEY and its like may name the file of a secret, which is none itself."""
    return value.startswith(("/", "~"))
