"""Whether the Hugging Face Hub can be reached: asked once and briefly, for its clients retry for half a minute."""

import threading
from functools import cache

_SECONDS = 5


@cache
def hub_reachable() -> bool:
    """True if the hub answers within five seconds and offline mode (HF_HUB_OFFLINE=1) is off."""
    from huggingface_hub import constants, get_session

    answered = threading.Event()

    def ask() -> None:
        try:
            get_session().head(constants.ENDPOINT, timeout=_SECONDS)  # the hub's own session: proxies are honoured
        except Exception:  # the type depends on the HTTP library that this version of the hub's client uses
            return
        answered.set()

    # In a thread, for the timeout bounds neither a resolver that hangs nor one address after the other.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_SECONDS)
    return answered.is_set()
