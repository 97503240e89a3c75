"""What `natattn train repeat=…` says at its end: whether the run came out the same, and what differs if not."""

from typing import Any, TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from natattn.analysis.repetition import Repetition
from natattn.storage.redaction import one_line

_WIDTH_WITHOUT_TERMINAL = 160


def print_repetition(repetition: Repetition, *, stream: TextIO) -> None:
    """Print the verdict in one line, and a table of what differs where something does."""
    width = None if stream.isatty() else _WIDTH_WITHOUT_TERMINAL
    # Words of the two machines are no markup.
    console = Console(file=stream, highlight=False, markup=False, emoji=False, width=width)
    style = "bold green" if repetition.agrees else "bold red"
    console.print(Text.assemble((one_line(_verdict_line(repetition)), style)), soft_wrap=True)
    if repetition.left_out:
        console.print(f"  not compared: {repetition.left_out} metrics of evaluations where a run had been stopped")
    if repetition.verdict == "bits":
        return
    for line in _details(repetition):
        console.print(Text(f"  {line}"), soft_wrap=True)
    if repetition.changes:
        table = Table("differs", "then", "now", title="what differs between then and now", title_justify="left")
        for change in repetition.changes:
            table.add_row(change.what, _short(change.then), _short(change.now))
        console.print(table)


def _verdict_line(repetition: Repetition) -> str:
    start = f"repeat of {repetition.of}: "
    if repetition.verdict == "bits":
        weights = f", weights of {len(repetition.weights)} arms too" if repetition.weights else ""
        return f"{start}equal to the bit ({repetition.compared} metrics{weights})"
    largest = repetition.largest
    difference = f"; the largest relative difference is {largest.relative:.2g} ({largest.place})" if largest else ""
    counts = f"{repetition.compared - repetition.equal} of {repetition.compared} metrics differ"
    if repetition.verdict == "rounding":
        return f"{start}equal within rounding: {counts}{difference}"
    return f"{start}DOES NOT AGREE: {counts}{difference}"


def _details(repetition: Repetition) -> list[str]:
    lines = []
    first, worst = repetition.first, repetition.worst
    if first is not None:
        lines.append(f"differs first at {first.place}: {first.then:.9g} → {first.now:.9g}")
    if worst is not None and worst.share > 1:
        lines.append(
            f"furthest beyond rounding, {worst.share:.3g} times what it may come to, at {worst.place}: "
            f"{worst.then:.9g} → {worst.now:.9g}"
        )
    if repetition.missing:
        step, arm, name = repetition.missing[0]
        lines.append(f"{len(repetition.missing)} metrics in one run alone, such as arm {arm}, step {step}, {name}")
    for arm, distance in repetition.weights.items():
        lines.append(f"weights of arm {arm}: relative distance {distance:.2g}")
    if repetition.not_recorded:
        lines.append(f"not recorded then: {', '.join(repetition.not_recorded)}")
    if not repetition.changes:
        lines.append("nothing that is recorded differs: train.deterministic=true makes one machine give the same bits")
    return lines


def _short(value: Any) -> str:
    """A value of the table: of hashes their beginning."""
    text = "(unset)" if value is None else str(value)
    body, plus, rest = text.partition("+changes")
    is_hash = len(body) >= 40 and all(letter in "0123456789abcdef" for letter in body)
    return f"{body[:12]}…{plus}{rest}" if is_hash else text
