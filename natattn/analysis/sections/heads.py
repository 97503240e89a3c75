"""The sections about what each head does: its mean statistics, and its patterns."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from natattn.analysis.patterns import attention_patterns, pattern_statistics
from natattn.analysis.settings import AnalyzeSettings
from natattn.analysis.subject import Subject
from natattn.attention.probe import AttentionProbe
from natattn.attention.quantities import QUANTITIES
from natattn.report import figures
from natattn.report.section import Advance, Picture, Section, Table, head_map, shown, table

Floats = NDArray[np.float64]

HEAD_QUANTITIES = {
    "entropy": "nats", "effective_support": "keys", "attention_distance": "tokens", "sink_mass": "",
    "heat_capacity": "", "standard_deviation": "of E",
}  # fmt: skip
PATTERN_SEQUENCES = 8
WORDS_SHOWN = 40
HEADS_SHOWN = 12


def heads_section(subject: Subject, settings: AnalyzeSettings, advance: Advance) -> Section:
    """Every head's mean statistics, and the effective rank of its patterns."""
    quantities = tuple(HEAD_QUANTITIES)
    with AttentionProbe(subject.model, quantities=quantities, row_count=None, cross_attention=True) as probe:
        with probe.step(0), torch.no_grad():
            for batch in subject.batches(settings.text.batch_size):
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
    maps = tuple(head_map(name, layers, values[name], units[name]) for name in values)
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


def patterns_section(subject: Subject, settings: AnalyzeSettings, advance: Advance) -> Section:
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
