"""The Hugging Face Hub: a short, cached check of whether it can be reached, and data sets of `datasets`."""

import os
import threading
from functools import cache
from typing import Any

from natattn.config.messages import first_line
from natattn.errors import UserError

_SECONDS = 5
# Names of readers of `datasets`; "pandas" reads pickles in older releases.
_READERS = frozenset(
    {"arrow", "audiofolder", "cache", "csv", "generator", "hdf5", "imagefolder", "json", "lance", "pandas", "parquet"}
    | {"pdffolder", "spark", "sql", "text", "videofolder", "webdataset", "xml"}
)


@cache
def hub_reachable() -> bool:
    """Return whether the hub answers within five seconds and offline mode (HF_HUB_OFFLINE=1) is off."""
    from huggingface_hub import constants, get_session

    answered = threading.Event()

    def ask() -> None:
        try:
            get_session().head(constants.ENDPOINT, timeout=_SECONDS)  # the hub client's own session honours proxies
        except Exception:  # the type depends on the HTTP library of the hub client
            return
        answered.set()

    # In a thread, because the timeout bounds neither name resolution nor several addresses.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_SECONDS)
    return answered.is_set()


def load_dataset(dataset: str, release: str | None, *, otherwise: str) -> Any:
    """Return all splits of a data set, a `datasets.DatasetDict`, from a hub name or a folder.

    `release`: its configuration, if it has any. `otherwise`: what to use without a network, for the message.

    Raises: UserError if it cannot be loaded; without a network this is immediate unless it is in the cache.
    """
    import datasets

    if dataset in _READERS:  # it would read files in the working folder
        raise UserError(f"data.dataset={dataset}: a reader of `datasets`, not a data set. Use a hub name or a folder")
    is_folder = os.path.isdir(folder := os.path.expanduser(dataset))
    online = is_folder or hub_reachable()  # otherwise six attempts take 23 seconds
    configured = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = configured or not online
    try:
        return datasets.load_dataset(folder if is_folder else dataset, release)
    except Exception as error:  # of many types: network, disk, unknown release, damaged download
        if online:
            cause = first_line(error)
        else:
            cause = f"the Hugging Face Hub cannot be reached and {datasets.config.HF_DATASETS_CACHE} does not hold it"
        named = dataset if release is None else f"{dataset} ({release})"
        raise UserError(f"data.dataset={named} cannot be loaded: {cause}; without a network use {otherwise}") from error
    finally:
        datasets.config.HF_HUB_OFFLINE = configured
