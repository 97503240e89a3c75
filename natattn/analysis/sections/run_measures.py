"""The measures of `natattn analyze runs=…`: each looks at a set of runs and says what it found as a section."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from natattn.analysis.run_set import RunSet
from natattn.analysis.sections.comparison import comparison_section
from natattn.analysis.sections.scaling import is_head_grid, scaling_section
from natattn.analysis.sections.training import curves_section, training_section, were_observed
from natattn.analysis.sections.widths import have_widths, widths_section
from natattn.analysis.settings import AnalyzeSettings, RunsSection
from natattn.report.section import Advance, Section


@dataclass(frozen=True)
class RunMeasure:
    """How a section is made, whether it has something to say about a set of runs, and whether it reads weights."""

    section: Callable[[RunSet, AnalyzeSettings, Advance], Section]
    applies: Callable[[RunSet], bool]
    reads_models: bool = False


def _always(runs: RunSet) -> bool:
    return True


def _have_baselines(runs: RunSet) -> bool:
    return any(baseline is not None for baseline in runs.baselines)


RUN_MEASURES: Mapping[RunsSection, RunMeasure] = {
    "curves": RunMeasure(curves_section, _always),
    "comparison": RunMeasure(comparison_section, _have_baselines),
    "training": RunMeasure(training_section, were_observed),
    "widths": RunMeasure(widths_section, have_widths, reads_models=True),
    "scaling": RunMeasure(scaling_section, is_head_grid),
}
