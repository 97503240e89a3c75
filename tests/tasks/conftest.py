"""Fixtures of the tasks beside language."""

import pytest
from small_tasks import TASKS


@pytest.fixture(params=TASKS)
def small(request) -> list[str]:
    """Overrides of a run of a few seconds, of each task."""
    return TASKS[request.param]
