"""Language, vision and multimodal tasks: data, model, loss and metrics for one training loop."""

from typing import Annotated

from pydantic import Field

from natattn.tasks.base import Batch, BatchSlice, Task
from natattn.tasks.language import LanguageSettings, LanguageTask
from natattn.tasks.multimodal import MultimodalSettings, MultimodalTask
from natattn.tasks.vision import VisionSettings, VisionTask

TaskSettings = Annotated[LanguageSettings | VisionSettings | MultimodalSettings, Field(discriminator="kind")]

__all__ = [
    "Batch",
    "BatchSlice",
    "LanguageSettings",
    "LanguageTask",
    "MultimodalSettings",
    "MultimodalTask",
    "Task",
    "TaskSettings",
    "VisionSettings",
    "VisionTask",
]
