"""Old name of natattn.report.figures; to be removed."""

from natattn.report.figures import *  # noqa: F403
