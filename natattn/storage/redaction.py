"""Redaction of passwords in URLs and of secrets in environment variables."""

import os
import re

HIDDEN = "…"
_PASSWORD_IN_ADDRESS = re.compile(r"(:/{1,2})[^/\s@'\"]+@")  # one slash remains if the URL was normalised as a path
_NAME_OF_A_SECRET = re.compile(
    r"(^|_)(TOKEN|(API|ACCESS)?KEY|SECRET|PASS|PASSWORD|PASSWD|PAT|CREDENTIALS?)$", re.IGNORECASE
)
_SHORTEST = 16  # characters; a shorter value may occur by chance


def secrets() -> dict[str, str]:
    """Return {name: value} of environment variables with secret names: HF_TOKEN, WANDB_API_KEY, …"""
    return {
        name: value
        for name, value in os.environ.items()
        if len(value) >= _SHORTEST and _NAME_OF_A_SECRET.search(name) and not _is_a_path(value)
    }


def redacted(text: str) -> str:
    """Remove passwords in URLs and values of secret environment variables from a text."""
    for value in sorted(secrets().values(), key=len, reverse=True):
        text = text.replace(value, HIDDEN)
    return _PASSWORD_IN_ADDRESS.sub(rf"\1{HIDDEN}@", text)


def secret_in(text: str) -> str | None:
    """Describe the secret that a text contains; None if there is none."""
    for name, value in secrets().items():
        if value in text:
            return f"the value of ${name}"
    return "a password in a URL" if _PASSWORD_IN_ADDRESS.search(text) else None


def one_line(text: str) -> str:
    """Escape everything in a text that is not printable, such as line breaks and control characters."""
    return "".join(letter if letter.isprintable() else _visible(letter) for letter in text)


def _visible(letter: str) -> str:
    """Escape a character like a Python string literal does."""
    return letter.encode("unicode_escape").decode("ascii")


def _is_a_path(value: str) -> bool:
    """Return whether the value is a path: SSH_KEY may name the file of a secret, which is not secret."""
    return value.startswith(("/", "~"))
