"""What Hydra calls after each job of a sweep, so that a long sweep takes no more memory than a short one."""

import gc
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig


class ReleaseJob(Callback):
    """Lets go of what a job leaves behind; named in ``conf/train.yaml``, for Hydra finds callbacks by name alone."""

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **_: Any) -> None:
        """Drop the compositions that Hydra keeps of every job until the sweep ends, and what the job's objects hold.

        Models, probes and figures hold each other in circles, which Python else collects after tens of jobs.
        """
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            job_return.cfg = job_return.hydra_cfg = None
            gc.collect()
