"""Fixtures of the contract suites."""

import pytest

from natattn.config import compose as config


@pytest.fixture(params=config.groups()["optim"])
def optimizer_name(request) -> str:
    return request.param
