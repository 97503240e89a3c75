"""The Hugging Face Hub: whether it can be reached, asked once and briefly, and the data sets that it holds."""

import os
import threading
from functools import cache
from typing import Any

from natattn.errors import UserError

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


def load_hub_dataset(dataset: str, release: str | None, instead: str) -> Any:
    """The splits of a data set: a hub name, or a folder that `datasets` loads.

    Args:
        instead: what can be used without a network.

    Raises UserError saying why it cannot be loaded.
    """
    import datasets

    online = os.path.isdir(dataset) or hub_reachable()
    configured = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = configured or not online  # else six attempts, 23 seconds in all
    try:
        return datasets.load_dataset(dataset, release)
    except Exception as error:  # of many types: network, disk, no such release, a broken download
        if online:
            cause = str(error).splitlines()[0] if str(error) else type(error).__name__
        else:
            cause = f"the Hugging Face Hub cannot be reached and {datasets.config.HF_DATASETS_CACHE} does not hold it"
        named = dataset if release is None else f"{dataset} ({release})"
        raise UserError(f"data.dataset={named} cannot be loaded: {cause}; without a network use {instead}") from error
    finally:
        datasets.config.HF_HUB_OFFLINE = configured
