"""The Hugging Face Hub: whether it can be reached, asked once and briefly, and the sets of `datasets` that it has."""

import os
import threading
from functools import cache
from typing import Any

from natattn.config.messages import first_line
from natattn.errors import UserError

_SECONDS = 5
# What `datasets` takes for its own readers instead of sets; that of "pandas" reads pickles in older releases.
_READERS = frozenset(
    {"arrow", "audiofolder", "cache", "csv", "generator", "hdf5", "imagefolder", "json", "lance", "pandas", "parquet"}
    | {"pdffolder", "spark", "sql", "text", "videofolder", "webdataset", "xml"}
)


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


def load_dataset(dataset: str, release: str | None, *, otherwise: str) -> Any:
    """All splits of a data set, a `datasets.DatasetDict`: a hub name or a folder, and its configuration if it has any.

    `otherwise`: what to use where there is no network, for the message.
    Raises UserError if it cannot be loaded; without a network that is known at once, unless it is in the cache.
    """
    import datasets

    if dataset in _READERS:  # which would read whatever lies in the working folder
        raise UserError(f"data.dataset={dataset}: a reader of `datasets`, not a set; valid: a hub name or a folder")
    is_folder = os.path.isdir(folder := os.path.expanduser(dataset))
    online = is_folder or hub_reachable()  # else six attempts, 23 seconds in all
    configured = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = configured or not online
    try:
        return datasets.load_dataset(folder if is_folder else dataset, release)
    except Exception as error:  # of many types: network, disk, no such release, a broken download
        if online:
            cause = first_line(error)
        else:
            cause = f"the Hugging Face Hub cannot be reached and {datasets.config.HF_DATASETS_CACHE} does not hold it"
        named = dataset if release is None else f"{dataset} ({release})"
        raise UserError(f"data.dataset={named} cannot be loaded: {cause}; without a network use {otherwise}") from error
    finally:
        datasets.config.HF_HUB_OFFLINE = configured
