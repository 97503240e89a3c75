"""What the contract suites are run over."""

import pytest

from natattn import config


@pytest.fixture(params=config.groups()["optim"])
def optimizer_name(request) -> str:
    return request.param
