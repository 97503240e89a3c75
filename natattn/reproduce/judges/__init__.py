"""Judges: from what `natattn analyze` said of models to findings with verdicts, and to the papers' tables.

A judge reads the sections that it knows, by the headings of their tables, of every analysis that has them; of others
it says nothing. It never fails on a section that exists: what is not in it becomes an inconclusive finding that says
so. Verdicts are those of protocol 7, by ``natattn.statistics.paired``.
"""

from collections.abc import Mapping

from natattn.analysis.registry import VERDICTS
from natattn.analysis.verdicts import Judge
from natattn.reproduce.judges.hierarchy import judge_hierarchy

JUDGES: Mapping[str, Judge] = {
    **VERDICTS,
    "hierarchy": judge_hierarchy,
}
