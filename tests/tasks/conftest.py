"""Fixtures of the tasks beside language."""

from conftest_tasks import small  # noqa: F401  (a fixture)
