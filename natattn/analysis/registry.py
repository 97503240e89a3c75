"""The questions of `natattn analyze`, and the verdicts that studies conclude from their results."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from natattn.analysis.frame import Question
from natattn.analysis.questions import widths
from natattn.analysis.run_set import RunSet
from natattn.analysis.sections.comparison import comparison_section
from natattn.analysis.sections.measures import MEASURES, OF_LANGUAGE_MODELS, OF_TWO_SEQUENCES, TEXT_ONLY
from natattn.analysis.sections.scaling import is_head_grid, scaling_section
from natattn.analysis.sections.training import curves_section, training_section, were_observed
from natattn.analysis.settings import ModelSection
from natattn.analysis.subject import Subject
from natattn.analysis.verdicts import Judge
from natattn.report.section import Section


# Questions that are not converted yet: their result is the section itself.
def _as_it_is(section: Section) -> Section:
    return section


def _fits(name: ModelSection, subject: Subject) -> bool:
    return (
        (subject.predicts_tokens or name not in OF_LANGUAGE_MODELS)
        and not (subject.reads_images and name in TEXT_ONLY)
        and not (subject.is_encoder_decoder and name not in OF_TWO_SEQUENCES)
    )


def _have_baselines(runs: RunSet) -> bool:
    return any(baseline is not None for baseline in runs.baselines)


MODEL_QUESTIONS: Mapping[str, Question[Subject, Any]] = {
    name: Question(Section, measure, _as_it_is, partial(_fits, name)) for name, measure in MEASURES.items()
}
RUN_QUESTIONS: Mapping[str, Question[RunSet, Any]] = {
    "curves": Question(Section, curves_section, _as_it_is, reads_models=False),
    "comparison": Question(Section, comparison_section, _as_it_is, _have_baselines, reads_models=False),
    "training": Question(Section, training_section, _as_it_is, were_observed, reads_models=False),
    "widths": widths.WIDTHS,
    "scaling": Question(Section, scaling_section, _as_it_is, is_head_grid, reads_models=False),
}
VERDICTS: Mapping[str, Judge] = {"widths": widths.verdict}
