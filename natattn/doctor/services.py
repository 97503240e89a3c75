"""What is reached over a network: Weights & Biases, the Hugging Face Hub. Keys are looked for, never shown."""

import netrc
import os
from collections.abc import Iterator
from urllib.parse import urlparse

from natattn.doctor.findings import Finding

_HOST = "https://api.wandb.ai"
_OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")


def services() -> Iterator[Finding]:
    """The mirror of the metrics, and the hub."""
    yield _wandb()
    yield _hub()


def _wandb() -> Finding:
    """A run's mode is that of its tracker, whatever WANDB_MODE says."""
    found = "tracker=offline, the default, works without an account"
    if _logged_in():
        return Finding("wandb", f"logged in: tracker=online sends runs live; {found}")
    return Finding("wandb", f"not logged in: tracker=online needs `wandb login`; {found}")


def _logged_in() -> bool:
    """Whether wandb would find a key of its server: in the environment, or in the user's netrc file."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", _HOST)).netloc
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
