"""One self-contained page of an analysis: opens offline, in light and dark, with numbers on hover."""

import base64
import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

from natattn.analysis.sections.section import shown

STYLE = """
:root { color-scheme: light dark; --text: #1c1c1c; --faint: #666; --line: #ddd; --back: #fff; --panel: #f6f6f4; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e8e8e6; --faint: #a5a5a0; --line: #3a3a38; --back: #191918; --panel: #242422; }
  img { filter: invert(0.92) hue-rotate(180deg); }
}
body { font: 15px/1.5 system-ui, sans-serif; color: var(--text); background: var(--back); max-width: 68rem;
  margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.6rem; border-top: 1px solid var(--line);
  padding-top: 1rem; } h3 { font-size: 0.95rem; margin: 1.2rem 0 0.3rem; }
nav a { margin-right: 0.9rem; } a { color: inherit; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 0.1rem 1rem; background: var(--panel);
  padding: 0.8rem 1rem; } dt { color: var(--faint); } dd { margin: 0; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.85rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.15rem 0.6rem; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line); }
th { cursor: pointer; color: var(--faint); font-weight: 600; white-space: nowrap; }
td.short { white-space: nowrap; }
td pre { margin: 0; font-size: 0.75rem; max-width: 24rem; overflow-x: auto; }
.map td { padding: 0; width: 2.4rem; height: 1.5rem; border: 1px solid var(--back); text-align: center;
  font-size: 0.7rem; } .map th { border: 0; cursor: default; }
.maps { display: flex; flex-wrap: wrap; gap: 0 2rem; }
figure { margin: 1rem 0; } img { max-width: 100%; height: auto; background: #fff; }
figcaption { color: var(--faint); font-size: 0.85rem; max-width: 46rem; }
"""

# Sorts a table by the heading that is clicked: numbers as numbers, the sign being a true minus.
SCRIPT = """
document.querySelectorAll("table.sortable th").forEach((heading) => heading.addEventListener("click", () => {
  const table = heading.closest("table"), column = [...heading.parentNode.children].indexOf(heading);
  const down = heading.dataset.down = heading.dataset.down === "1" ? "0" : "1";
  const key = (row) => { const text = row.children[column].dataset.value ?? row.children[column].textContent;
    const number = parseFloat(text.replace(/−/g, "-").replace(/^\\[/, ""));
    return Number.isNaN(number) ? text : number; };
  const rows = [...table.tBodies[0].rows].sort((a, b) => { const x = key(a), y = key(b);
    const order = typeof x === typeof y ? (x < y ? -1 : x > y ? 1 : 0) : typeof x === "number" ? -1 : 1;
    return down === "1" ? order : -order; });
  table.tBodies[0].append(...rows);
}));
"""
SHORT = 28  # characters of a cell that stays on one line
# cividis, by its ends and middle: from dark blue over grey to yellow.
_STOPS = ((0, 32, 77), (124, 123, 120), (255, 234, 70))


def render(
    title: str, facts: Mapping[str, str], sections: Sequence[Mapping[str, Any]], pictures: Mapping[str, bytes]
) -> str:
    """The page.

    Args:
        facts: what was looked at, for the top.
        sections: as ``Section.to_json`` gives them.
        pictures: PNG by name.
    """
    card = "".join(f"<dt>{_text(name)}</dt><dd>{_text(value)}</dd>" for name, value in facts.items())
    links = "".join(f'<a href="#{_text(s["name"])}">{_text(s["title"])}</a>' for s in sections)
    body = "".join(_section(section, pictures) for section in sections)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{_text(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head>'
        f"<body><h1>{_text(title)}</h1><dl>{card}</dl><nav>{links}</nav>{body}<script>{SCRIPT}</script></body></html>\n"
    )


def _section(section: Mapping[str, Any], pictures: Mapping[str, bytes]) -> str:
    findings = "".join(f"<li>{_text(finding)}</li>" for finding in section["findings"])
    shown_pictures = "".join(
        f'<figure><img alt="{_text(p["name"])}" src="data:image/png;base64,'
        f'{base64.b64encode(pictures[p["name"]]).decode()}"><figcaption>{_text(p["caption"])}</figcaption></figure>'
        for p in section["pictures"]
    )
    maps = "".join(_map(found) for found in section["maps"])
    tables = "".join(f'<div class="wide">{_table(found)}</div>' for found in section["tables"])
    return (
        f'<h2 id="{_text(section["name"])}">{_text(section["title"])}</h2><ul>{findings}</ul>{shown_pictures}'
        f'<div class="maps">{maps}</div>{tables}'
    )


def _table(found: Mapping[str, Any]) -> str:
    head = "".join(f"<th>{_text(name)}</th>" for name in found["headings"])
    rows = "".join("<tr>" + "".join(map(_cell, row)) + "</tr>" for row in found["rows"])
    return f'<table class="sortable"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'


def _cell(value: Any) -> str:
    if isinstance(value, str) and "torch." in value:
        return f"<td><pre>{_text(value)}</pre></td>"
    number = f' data-value="{value!r}" title="{value!r}"' if isinstance(value, float) else ""
    text = shown(value)
    short = ' class="short"' if len(text) <= SHORT else ""
    return f"<td{short}{number}>{_text(text)}</td>"


def _map(found: Mapping[str, Any]) -> str:
    numbers = [value for row in found["values"] for value in row if isinstance(value, float) and math.isfinite(value)]
    low, high = (min(numbers), max(numbers)) if numbers else (0.0, 1.0)
    columns = "".join(f"<th>{head}</th>" for head in range(max(map(len, found["values"]), default=0)))
    rows = ""
    for layer, values in zip(found["layers"], found["values"], strict=True):
        cells = ""
        for head, value in enumerate(values):
            known = isinstance(value, float) and math.isfinite(value)
            back, front = (
                _colours((value - low) / (high - low) if high > low else 0.5) if known else ("none", "inherit")
            )
            hover = f"layer {layer}, head {head}: {value!r} {found['unit']}".strip()
            cells += (
                f'<td style="background:{back};color:{front}" title="{_text(hover)}">'
                f"{_text(shown(value, 2)) if known else '—'}</td>"
            )
        rows += f"<tr><th>{layer}</th>{cells}</tr>"
    unit = f", {found['unit']}" if found["unit"] else ""
    name = found["name"].replace("_", " ")
    return (
        f'<div><h3>{_text(name + unit)}</h3><table class="map"><thead><tr><th></th>{columns}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def _colours(share: float) -> tuple[str, str]:
    """Background at a share of the scale, and letters that can be read on it."""
    place = min(max(share, 0.0), 1.0) * (len(_STOPS) - 1)
    index = min(int(place), len(_STOPS) - 2)
    mixed = [round(a + (b - a) * (place - index)) for a, b in zip(_STOPS[index], _STOPS[index + 1], strict=True)]
    return f"rgb({mixed[0]},{mixed[1]},{mixed[2]})", "#000" if share > 0.55 else "#fff"


def _text(value: Any) -> str:
    return html.escape(str(value))
