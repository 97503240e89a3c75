"""What can be trained: language, vision, multimodal. A task supplies data, model, loss and metrics to one loop."""

from typing import Annotated

from pydantic import Field

from natattn.tasks.base import Batch, Part, Task
from natattn.tasks.language import LanguageSettings, LanguageTask
from natattn.tasks.multimodal import MultimodalSettings, MultimodalTask
from natattn.tasks.vision import VisionSettings, VisionTask

TaskSettings = Annotated[LanguageSettings | VisionSettings | MultimodalSettings, Field(discriminator="kind")]

__all__ = [
    "Batch",
    "LanguageSettings",
    "LanguageTask",
    "MultimodalSettings",
    "MultimodalTask",
    "Part",
    "Task",
    "TaskSettings",
    "VisionSettings",
    "VisionTask",
]
