"""The measures of `natattn analyze`: each looks at a subject and says what it found as a section."""

from collections.abc import Callable, Mapping

from natattn.analysis.sections.gradients import gradients_section
from natattn.analysis.sections.heads import heads_section, patterns_section
from natattn.analysis.sections.hierarchy import hierarchy_section
from natattn.analysis.sections.power_laws import spectra_section
from natattn.analysis.settings import AnalyzeSettings, ModelSection
from natattn.analysis.subject import Subject
from natattn.report.section import Advance, Section

Measure = Callable[[Subject, AnalyzeSettings, Advance], Section]


# Of models that predict the next token; others are refused, and spared them where nobody asked.
OF_LANGUAGE_MODELS: frozenset[ModelSection] = frozenset({"gradients"})
# Along or inside text, which patches of an image have no order for.
TEXT_ONLY: frozenset[ModelSection] = frozenset({"sizes", "cascades", "fisher", "gradients", "hierarchy"})
# Of models with an encoder and a decoder: what asks for one pattern of one sequence on itself is left out.
OF_TWO_SEQUENCES: frozenset[ModelSection] = frozenset({"heads", "spectra", "theorems"})
MEASURES: Mapping[ModelSection, Measure] = {
    "heads": heads_section,
    "spectra": spectra_section,
    "gradients": gradients_section,
    "patterns": patterns_section,
    "hierarchy": hierarchy_section,
}
