"""What is reached over a network: Weights & Biases, the Hugging Face Hub. Keys are looked for, never shown."""

import netrc
import os
from collections.abc import Iterator
from urllib.parse import urlparse

from natattn.doctor.findings import Finding
from natattn.storage.redaction import redacted

_HOST = "https://api.wandb.ai"
_ADDRESS = "WANDB_BASE_URL"
_OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")


def services() -> Iterator[Finding]:
    """The mirror of the metrics, and the hub."""
    yield _wandb()
    yield _hub()


def _wandb() -> Finding:
    """A run's mode is that of its tracker, whatever WANDB_MODE says."""
    found = "tracker=offline, the default, works without an account"
    try:
        urlparse(os.environ.get(_ADDRESS, _HOST))
    except ValueError as error:
        said = redacted(f"{_ADDRESS}={os.environ[_ADDRESS]} is no address: {error}")
        return Finding("wandb", said, "broken", f"set {_ADDRESS} to that of your server, or unset it for {_HOST}")
    if _logged_in():
        return Finding("wandb", f"logged in: tracker=online sends runs live; {found}")
    return Finding("wandb", f"not logged in: tracker=online needs `wandb login`; {found}")


def _logged_in() -> bool:
    """Whether wandb would find a key of its server: in the environment, or in the user's netrc file."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get(_ADDRESS, _HOST)).netloc
    files = [os.environ.get("NETRC", ""), "~/.netrc", "~/_netrc"]
    for path in map(os.path.expanduser, filter(None, files)):
        try:
            if host in netrc.netrc(path).hosts:
                return True
        except (OSError, netrc.NetrcParseError, UnicodeDecodeError):
            continue
    return False


def _hub() -> Finding:
    switch = next((name for name in _OFFLINE if os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE")), None)
    if switch is not None:
        return Finding("Hugging Face Hub", f"not asked: {switch} is set; what its cache holds can be used")
    from natattn.data.hub import hub_reachable

    if hub_reachable():
        return Finding("Hugging Face Hub", "reachable")
    advice = "data and models must be in its cache, or local: data=stdlib, data=text; HF_HUB_OFFLINE=1 saves the wait"
    return Finding("Hugging Face Hub", "does not answer within five seconds", "note", advice)
