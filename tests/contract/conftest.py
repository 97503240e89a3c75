"""Fixtures of the contract suites."""

import pytest

from natattn.config.compose import groups


@pytest.fixture(params=groups()["optim"])
def optimizer_name(request) -> str:
    return request.param
