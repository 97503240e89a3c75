"""Hydra callback that frees the memory of each job of a sweep."""

import gc
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig


class ReleaseJob(Callback):
    """Frees what a job leaves behind. Named in ``conf/train.yaml``, since Hydra finds callbacks by name."""

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **_: Any) -> None:
        """Drop the configurations that Hydra keeps of every job until the sweep ends, and collect garbage.

        Models, probes and figures are in reference cycles, which Python would only collect after tens of jobs.
        """
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            job_return.cfg = job_return.hydra_cfg = None
            gc.collect()
