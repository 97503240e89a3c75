"""The measures of `natattn analyze`: each looks at a subject and says what it found as a section."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from natattn.analysis.avalanches import threshold_scan
from natattn.analysis.patterns import attention_patterns, pattern_statistics, row_entropies
from natattn.analysis.pictures import figures
from natattn.analysis.powerlaw import PowerLaw, analyse_power_law
from natattn.analysis.sections.cutoffs import CUTOFF_HEADINGS, cutoff_cells
from natattn.analysis.sections.fisher import fisher_section
from natattn.analysis.sections.gradients import gradients_section
from natattn.analysis.sections.hierarchy import hierarchy_section
from natattn.analysis.sections.scans import finite_size_section, scan_section
from natattn.analysis.sections.section import HeadMap, Picture, Section, Table, interval_text, shown, table
from natattn.analysis.settings import AnalyzeSettings, ModelSection
from natattn.analysis.spectra import weight_spectra
from natattn.analysis.subject import Subject
from natattn.analysis.theorems import check_theorems
from natattn.attention.probe import AttentionProbe
from natattn.attention.quantities import QUANTITIES

Advance = Callable[[int], None]
Measure = Callable[[Subject, AnalyzeSettings, Advance], Section]
Floats = NDArray[np.float64]

HEAD_QUANTITIES = {
    "entropy": "nats", "effective_support": "keys", "attention_distance": "tokens", "sink_mass": "",
    "heat_capacity": "", "standard_deviation": "of E",
}  # fmt: skip
PATTERN_SEQUENCES = 8
WORDS_SHOWN = 40
HEADS_SHOWN = 12


def heads(subject: Subject, settings: AnalyzeSettings, advance: Advance) -> Section:
    """Every head's mean statistics, and the effective rank of its patterns."""
    quantities = tuple(HEAD_QUANTITIES)
    with AttentionProbe(subject.model, quantities=quantities, row_count=None, cross_attention=True) as probe:
        with probe.step(0), torch.no_grad():
            for batch in _batches(subject, settings):
                subject.model(**subject.inputs(batch))
                advance(len(batch))
        layers = probe.layers
        kinds = [
            (site.layer, site.name, "other sequence" if site.is_cross_attention else "itself") for site in probe.sites
        ]
        values = {
            name: torch.stack([probe.statistics(layer)[name].double().cpu() for layer in layers]).numpy()
            for name in HEAD_QUANTITIES
        }
    units = HEAD_QUANTITIES
    rank = ""
    if not subject.is_encoder_decoder:
        few = attention_patterns(subject.model, subject.beginning(PATTERN_SEQUENCES))
        values["effective_rank"] = pattern_statistics(few).effective_rank.numpy()
        units = HEAD_QUANTITIES | {"effective_rank": f"of {next(iter(few.values())).shape[-1]}"}
        rank = f"Patterns have an effective rank of {shown(float(values['effective_rank'].mean()))} on average."
    maps = tuple(_head_map(name, units[name], layers, values[name]) for name in values)
    sinks = int((values["sink_mass"] > 0.5).sum())
    findings = (
        f"Entropy of a row is {shown(float(values['entropy'].mean()))} nats on average, "
        f"{shown(float(values['entropy'].min()))} to {shown(float(values['entropy'].max()))} over heads.",
        f"{sinks} of {values['sink_mass'].size} heads give more than half of their attention to the first token.",
        *([rank] if rank else []),
    )
    meanings = table(("quantity", "meaning"), [(name, QUANTITIES[name].meaning) for name in HEAD_QUANTITIES])
    picture = Picture(
        "heads", "Means over rows and sequences. Look for layers whose heads differ, and for heads that only look at "
        "the first token.", _long(values, layers),
        figures.head_maps([(name, units[name], found) for name, found in values.items()], layers),
    )  # fmt: skip
    named = table(("layer", "module", "attends to"), kinds)
    return Section("heads", "Heads", findings, (meanings, named), maps, (picture,))


def frozen(subject: Subject, settings: AnalyzeSettings, advance: Advance) -> Section:
    """The scores at other temperatures."""
    return scan_section(subject, settings, "frozen", advance)


def propagated(subject: Subject, settings: AnalyzeSettings, advance: Advance) -> Section:
    """The model at other temperatures."""
    return scan_section(subject, settings, "propagated", advance)


def cascades(subject: Subject, settings: AnalyzeSettings, advance: Advance) -> Section:
    """Cascades of entropy along the tokens, at every threshold."""
    signals: list[Floats] = []
    for batch in _batches(subject, settings):
        entropies = row_entropies(subject.model, batch)  # [layers, sequences, H, L]
        # The first rows have few keys: their entropy rises with their position whatever the head does.
        skipped = min(16, batch.shape[1] // 4) if subject.is_causal else 0
        signals.extend(entropies[..., skipped:].transpose(0, 1).flatten(1, 2).numpy())
        advance(len(batch))
    rows, samples, laws, accepted = [], [], [], []
    for threshold, (counts, branching) in threshold_scan(signals, settings.thresholds).items():
        sizes = counts.astype(float)
        law = _law(sizes, settings)
        fit = None if law is None else law.fit
        rows.append((
            threshold, len(sizes), float(sizes.mean()) if len(sizes) else None,
            None if branching is None else branching.naive, None if branching is None else branching.robust,
            *_law_cells(law), *cutoff_cells(sizes, law, replicas=settings.law_replicas, seed=settings.seed),
        ))  # fmt: skip
        samples.append((f"threshold {threshold:g}", sizes))
        laws.append(None if fit is None else (fit.exponent, fit.minimum, fit.tail / len(sizes)))
        if law is not None and law.p_value is not None and law.p_value >= 0.1:
            accepted.append(threshold)
    own = ("threshold", "cascades", "mean size", "branching, naive", "branching, robust")
    headings = (*own, *_LAW_HEADINGS, *CUTOFF_HEADINGS)
    findings = (
        f"A power law of the sizes is not refuted (p ≥ 0.1) at thresholds {', '.join(map(shown, accepted)) or 'none'}.",
        "An exponent of 3/2 is what critical branching would give (claim K2); it has to hold over thresholds.",
    )
    result = table(headings, rows)
    if not any(len(sizes) for _, sizes in samples):
        nothing = "No token is further from its head's mean than the smallest threshold: there are no cascades."
        return Section("cascades", "Cascades of entropy", (nothing,), (result,))
    picture = Picture(
        "cascades", "Sizes of cascades: points are the sample, lines the fitted power laws. A straight line over two "
        "decades would be needed to speak of scaling.", _counts(samples), figures.survival(samples, laws),
    )  # fmt: skip
    return Section("cascades", "Cascades of entropy", findings, (result,), (), (picture,))


def spectra(subject: Subject, settings: AnalyzeSettings, advance: Advance) -> Section:
    """Eigenvalues of the attention matrices."""
    found = weight_spectra(
        subject.model, replicas=settings.law_replicas, seed=settings.seed, processes=settings.processes, advance=advance
    )
    rows = [
        (
            s.layer,
            s.role,
            s.stable_rank,
            *_law_cells(s.law),
            None if s.shuffled.fit is None else s.shuffled.fit.exponent,
        )
        for s in found
    ]
    result = table(("layer", "matrix", "stable rank", *_LAW_HEADINGS, "τ of shuffled entries"), rows)
    kept = [s for s in found if s.law.p_value is not None and s.law.p_value >= 0.1]
    findings = (
        f"{len(kept)} of {len(found)} matrices have a tail that a power law does not miss (p ≥ 0.1).",
        "The exponent of the same entries in random order is beside it: a tail that this has too is not learned.",
    )
    last = [s for s in found if s.layer == max((each.layer for each in found), default=0)]
    samples = [
        (f"{s.role}, layer {s.layer}", s.eigenvalues[s.eigenvalues > 1e-3 * s.eigenvalues.max(initial=0.0)])
        for s in last
    ]
    laws = [
        None if s.law.fit is None else (s.law.fit.exponent, s.law.fit.minimum, s.law.fit.tail / max(1, len(values)))
        for s, (_, values) in zip(last, samples, strict=True)
    ]
    data = table(("matrix", "eigenvalue"), [(name, float(value)) for name, values in samples for value in values])
    caption = "Eigenvalues of W Wᵀ in the last layer, those above a thousandth of the largest, with their power laws."
    picture = Picture("spectra", caption, data, figures.survival(samples, laws))
    return Section("spectra", "Spectra of the weights", findings, (result,), (), (picture,))


def patterns(subject: Subject, settings: AnalyzeSettings, advance: Advance) -> Section:
    """Mean patterns, their variability, and one head over its text."""
    found = attention_patterns(subject.model, subject.beginning(PATTERN_SEQUENCES))
    statistics = pattern_statistics(found)
    advance(len(subject.tokens))
    chosen = list(islice(_spread(statistics.mean.shape[0], statistics.mean.shape[1]), HEADS_SHOWN))
    titles = [f"layer {statistics.layers[layer]} head {head}" for layer, head in chosen]
    grids = {
        "mean": [statistics.mean[layer, head] for layer, head in chosen],
        "deviation": [statistics.deviation[layer, head] for layer, head in chosen],
    }
    # Of the heads that look at more than one key, the one that varies the most with the text.
    varies = statistics.deviation.mean((-2, -1))
    layer, head = divmod(int(varies.argmax()), varies.shape[1])
    words = [_visible(word) for word in subject.words[:WORDS_SHOWN]]
    over_text = found[statistics.layers[layer]][0, head, : len(words), : len(words)].double().numpy()
    captions = {
        "mean": "Mean pattern of some heads (rows are queries, square root of the weight): diagonals are heads that "
        "look at a fixed distance, a bright first column is a sink.",
        "deviation": "Standard deviation over sequences: what is bright here depends on the text.",
    }
    pictures = [
        Picture(
            f"patterns_{name}", captions[name], _pattern_table(titles, grid),
            figures.pattern_grid(torch.stack(grid).numpy(), titles),
        )
        for name, grid in grids.items()
    ]  # fmt: skip
    caption = f"Layer {statistics.layers[layer]}, head {head}, over the beginning of the first sequence."
    text_data = table(("query", *words), [(word, *map(float, row)) for word, row in zip(words, over_text, strict=True)])
    picture = figures.pattern_grid(over_text[None], [caption.partition(", over")[0]], words)
    finding = f"The head whose pattern depends most on the text is layer {statistics.layers[layer]}, head {head}."
    return Section(
        "patterns", "Patterns", (finding,), (), (), (*pictures, Picture("patterns_text", caption, text_data, picture))
    )


def theorems(subject: Subject, settings: AnalyzeSettings, advance: Advance) -> Section:
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
OF_TEXT: frozenset[ModelSection] = frozenset({"sizes", "cascades", "fisher", "gradients", "hierarchy"})
# Of models with an encoder and a decoder: what asks for one pattern of one sequence on itself is left out.
OF_TWO_SEQUENCES: frozenset[ModelSection] = frozenset({"heads", "spectra", "theorems"})
MEASURES: Mapping[ModelSection, Measure] = {
    "heads": heads,
    "frozen": frozen,
    "propagated": propagated,
    "sizes": finite_size_section,
    "cascades": cascades,
    "spectra": spectra,
    "fisher": fisher_section,
    "gradients": gradients_section,
    "patterns": patterns,
    "hierarchy": hierarchy_section,
    "theorems": theorems,
}

_LAW_HEADINGS = ("τ", "95 % interval", "from", "p", "cutoff", "better rival")


def _law(values: Floats, settings: AnalyzeSettings) -> PowerLaw | None:
    if not len(values):
        return None
    return analyse_power_law(
        values, discrete=True, replicas=settings.law_replicas, seed=settings.seed, processes=settings.processes
    )


def _law_cells(law: PowerLaw | None) -> tuple[str | float | None, ...]:
    """Under ``_LAW_HEADINGS``."""
    if law is None or law.fit is None:
        return (None,) * len(_LAW_HEADINGS)
    better = [name for name, rival in law.rivals.items() if rival.log_ratio < 0 and rival.p_value < 0.05]
    interval = None if law.interval is None else interval_text(*law.interval)
    return law.fit.exponent, interval, law.fit.minimum, law.p_value, law.cutoff, ", ".join(better) or "none"


def _counts(samples: Sequence[tuple[str, Floats]]) -> Table:
    """How often each size occurs."""
    found = [(label, *np.unique(values, return_counts=True)) for label, values in samples]
    return table(("sample", "size", "cascades"), [
        (label, float(size), int(count)) for label, sizes, counts in found
        for size, count in zip(sizes, counts, strict=True)
    ])  # fmt: skip


def _batches(subject: Subject, settings: AnalyzeSettings) -> Iterator[Tensor]:
    device = next(subject.model.parameters()).device
    yield from torch.split(subject.tokens.to(device), settings.text.batch_size)


def _head_map(name: str, unit: str, layers: list[int], values: Floats) -> HeadMap:
    return HeadMap(name, unit, tuple(layers), tuple(tuple(map(float, row)) for row in values))


def _long(values: Mapping[str, Floats], layers: list[int]) -> Table:
    rows = [
        (name, layers[layer], head, float(value))
        for name, found in values.items()
        for (layer, head), value in np.ndenumerate(found)
    ]
    return table(("quantity", "layer", "head", "value"), rows)


def _spread(layers: int, count: int) -> Iterator[tuple[int, int]]:
    """Heads of layers that are far apart, layer by layer."""
    rows = sorted({round(place) for place in np.linspace(0, layers - 1, min(3, layers))})
    per_layer = max(1, HEADS_SHOWN // len(rows))
    for layer in rows:
        for head in range(min(count, per_layer)):
            yield layer, head


def _pattern_table(titles: Sequence[str], grid: Sequence[Tensor]) -> Table:
    """A row for each query of each pattern; four digits, as there are many."""
    length = grid[0].shape[-1]
    return table(("head", "query", *map(str, range(length))), [
        (title, query, *(float(f"{value:.4g}") for value in row.tolist()))
        for title, pattern in zip(titles, grid, strict=True) for query, row in enumerate(pattern)
    ])  # fmt: skip


def _visible(word: str) -> str:
    """A token as a label: white space is seen."""
    return word.replace("\n", "↵").replace("\t", "⇥").replace(" ", "·")[:12] or "∅"
