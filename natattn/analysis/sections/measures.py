"""The measures of `natattn analyze`: each looks at a subject and says what it found as a section."""

from collections.abc import Callable, Mapping
from functools import partial

from natattn.analysis.sections.fisher import fisher_section
from natattn.analysis.sections.gradients import gradients_section
from natattn.analysis.sections.heads import heads_section, patterns_section
from natattn.analysis.sections.hierarchy import hierarchy_section
from natattn.analysis.sections.power_laws import cascades_section, spectra_section
from natattn.analysis.sections.scans import finite_size_section, scan_section
from natattn.analysis.settings import AnalyzeSettings, ModelSection
from natattn.analysis.subject import Subject
from natattn.analysis.theorems import check_theorems
from natattn.report.section import Advance, Section, table

Measure = Callable[[Subject, AnalyzeSettings, Advance], Section]


def theorems_section(subject: Subject, settings: AnalyzeSettings, advance: Advance) -> Section:
    """The papers' theorems by number; the same for every subject."""
    checks = check_theorems(seed=settings.seed)
    rows = [(c.claim, c.statement, c.verdict, c.worst, c.cases, c.note, c.paste()) for c in checks]
    refuted = [check.claim for check in checks if check.verdict == "refuted"]
    finding = f"{len(refuted)} of {len(checks)} statements are refuted by a counterexample: {', '.join(refuted)}."
    headings = ("claim", "statement", "verdict", "worst excess", "cases", "why", "smallest counterexample")
    advance(len(subject.tokens))
    return Section("theorems", "Theorems", (finding,), (table(headings, rows),))


# Of models that predict the next token; others are refused, and spared them where nobody asked.
OF_LANGUAGE_MODELS: frozenset[ModelSection] = frozenset({"gradients"})
# Along or inside text, which patches of an image have no order for.
TEXT_ONLY: frozenset[ModelSection] = frozenset({"sizes", "cascades", "fisher", "gradients", "hierarchy"})
# Of models with an encoder and a decoder: what asks for one pattern of one sequence on itself is left out.
OF_TWO_SEQUENCES: frozenset[ModelSection] = frozenset({"heads", "spectra", "theorems"})
MEASURES: Mapping[ModelSection, Measure] = {
    "heads": heads_section,
    "frozen": partial(scan_section, "frozen"),
    "propagated": partial(scan_section, "propagated"),
    "sizes": finite_size_section,
    "cascades": cascades_section,
    "spectra": spectra_section,
    "fisher": fisher_section,
    "gradients": gradients_section,
    "patterns": patterns_section,
    "hierarchy": hierarchy_section,
    "theorems": theorems_section,
}
