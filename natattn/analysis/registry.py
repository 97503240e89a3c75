"""The questions of `natattn analyze`, and the verdicts that studies conclude from their results."""

from collections.abc import Mapping
from functools import partial
from typing import Any, get_args

from natattn.analysis.frame import Question
from natattn.analysis.questions import (
    cascades,
    comparison,
    curves,
    fisher_claims,
    scaling,
    temperature,
    theorems,
    training,
    widths,
)
from natattn.analysis.run_set import RunSet
from natattn.analysis.sections.measures import MEASURES, OF_LANGUAGE_MODELS, OF_TWO_SEQUENCES, TEXT_ONLY
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


_TYPED: Mapping[ModelSection, Question[Subject, Any]] = {
    "frozen": temperature.FROZEN,
    "propagated": temperature.PROPAGATED,
    "sizes": temperature.SIZES,
    "cascades": cascades.QUESTION,
    "fisher": fisher_claims.QUESTION,
    "theorems": theorems.QUESTION,
}
MODEL_QUESTIONS: Mapping[str, Question[Subject, Any]] = {
    name: _TYPED[name] if name in _TYPED else Question(Section, MEASURES[name], _as_it_is, partial(_fits, name))
    for name in get_args(ModelSection)
}
RUN_QUESTIONS: Mapping[str, Question[RunSet, Any]] = {
    "curves": curves.CURVES,
    "comparison": comparison.COMPARISON,
    "training": training.TRAINING,
    "widths": widths.WIDTHS,
    "scaling": scaling.SCALING,
}
VERDICTS: Mapping[str, Judge] = {
    "lead": training.verdict,
    "scaling": scaling.verdict,
    "widths": widths.verdict,
    "cascades": cascades.verdict,
    "correlation": temperature.verdict,
    "fisher": fisher_claims.verdict,
    "theorems": theorems.verdict,
}
