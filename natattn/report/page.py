"""Self-contained pages, and that of an analysis: open offline, in light and dark, with numbers on hover."""

import base64
import hashlib
import html
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from natattn.report.section import shown

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
th { color: var(--faint); font-weight: 600; white-space: nowrap; } .sortable th { cursor: pointer; }
th[aria-sort="ascending"]::after { content: " ▴"; } th[aria-sort="descending"]::after { content: " ▾"; }
td.short { white-space: nowrap; }
td pre { margin: 0; font-size: 0.75rem; max-width: 24rem; overflow-x: auto; }
.map td { padding: 0; width: 2.4rem; height: 1.5rem; border: 1px solid var(--back); text-align: center;
  font-size: 0.7rem; } .map th { border: 0; }
.maps { display: flex; flex-wrap: wrap; gap: 0 2rem; }
figure { margin: 1rem 0; } img { max-width: 100%; height: auto; background: #fff; }
figcaption { color: var(--faint); font-size: 0.85rem; max-width: 46rem; }
"""

# Sorts a table by the heading that is clicked, or chosen with the keyboard: numbers as numbers, the sign being a true
# minus and commas between thousands; what is not known stays at the end.
SCRIPT = """
document.querySelectorAll("table.sortable thead th").forEach((heading) => {
  const sort = () => {
    const table = heading.closest("table"), headings = [...heading.parentNode.children];
    const column = headings.indexOf(heading), down = heading.getAttribute("aria-sort") === "ascending";
    headings.forEach((other) => other.removeAttribute("aria-sort"));
    heading.setAttribute("aria-sort", down ? "descending" : "ascending");
    const key = (row) => {
      const text = (row.children[column].dataset.value ?? row.children[column].textContent).trim();
      const number = parseFloat(text.replace(/−/g, "-").replace(/∞/g, "Infinity").replace(/^\\[/, "")
        .replace(/,(?=\\d{3})/g, ""));
      return text === "" || text === "—" ? null : Number.isNaN(number) ? text : number; };
    const order = (x, y) => typeof x === typeof y ? (x < y ? -1 : x > y ? 1 : 0) : typeof x === "number" ? -1 : 1;
    const rows = [...table.tBodies[0].rows].map((row) => [key(row), row]).sort(([x], [y]) =>
      x === null || y === null ? (x === null) - (y === null) : down ? -order(x, y) : order(x, y));
    table.tBodies[0].append(...rows.map(([, row]) => row));
  };
  heading.tabIndex = 0;
  heading.addEventListener("click", sort);
  heading.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" && event.key !== " ") return;
    event.preventDefault();
    sort();
  });
});
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
    links = "".join(f'<a href="#{escaped(s["name"])}">{escaped(s["title"])}</a>' for s in sections)
    body = "".join(_section(section, pictures) for section in sections)
    return document(title, f"{fact_list(facts)}<nav>{links}</nav>{body}")


def document(title: str, body: str, *, style: str = "", script: str = "") -> str:
    """A whole page: heading, body, and beside what all pages share its own style and script.

    The browser is told to load nothing from anywhere, and to run no script but this one.

    Args:
        body: HTML; ``title`` is plain text.
        style, script: are the program's own, never data.
    """
    scripts = SCRIPT + script
    allowed = base64.b64encode(hashlib.sha256(scripts.encode()).digest()).decode()
    policy = (
        "default-src 'none'; base-uri 'none'; form-action 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{allowed}'"
    )
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escaped(title)}</title>'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{STYLE}{style}</style></head>"
        f"<body><h1>{escaped(title)}</h1>{body}<script>{scripts}</script></body></html>\n"
    )


def fact_list(facts: Mapping[str, str]) -> str:
    """Names and what they are, in two columns; nothing where there are none."""
    rows = "".join(f"<dt>{escaped(name)}</dt><dd>{escaped(value)}</dd>" for name, value in facts.items())
    return f"<dl>{rows}</dl>" if rows else ""


def picture(name: str, caption: str, png: bytes) -> str:
    """A figure that carries its PNG."""
    source = base64.b64encode(png).decode()
    return (
        f'<figure><img alt="{escaped(name)}" src="data:image/png;base64,{source}">'
        f"<figcaption>{escaped(caption)}</figcaption></figure>"
    )


def sortable(headings: Sequence[str], rows: Iterable[str]) -> str:
    """A table that is sorted by clicking its headings, as wide as it needs to be.

    Args:
        rows: the cells of each as HTML; the ``data-value`` of a cell is what it is sorted by.
    """
    head = "".join(f"<th>{escaped(name)}</th>" for name in headings)
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    return (
        f'<div class="wide"><table class="sortable"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def escaped(value: Any) -> str:
    """Any value as text in HTML, also inside quotes."""
    return html.escape(str(value))


def _section(section: Mapping[str, Any], pictures: Mapping[str, bytes]) -> str:
    findings = "".join(f"<li>{escaped(finding)}</li>" for finding in section["findings"])
    shown_pictures = "".join(picture(p["name"], p["caption"], pictures[p["name"]]) for p in section["pictures"])
    maps = "".join(_map(found) for found in section["maps"])
    tables = "".join(
        sortable(t["headings"], ("".join(map(_cell, row)) for row in t["rows"])) for t in section["tables"]
    )
    return (
        f'<h2 id="{escaped(section["name"])}">{escaped(section["title"])}</h2><ul>{findings}</ul>{shown_pictures}'
        f'<div class="maps">{maps}</div>{tables}'
    )


def _cell(value: Any) -> str:
    if isinstance(value, str) and "torch." in value:
        return f"<td><pre>{escaped(value)}</pre></td>"
    number = f' data-value="{value!r}" title="{value!r}"' if isinstance(value, float) else ""
    text = shown(value)
    short = ' class="short"' if len(text) <= SHORT else ""
    return f"<td{short}{number}>{escaped(text)}</td>"


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
                f'<td style="background:{back};color:{front}" title="{escaped(hover)}">'
                f"{escaped(shown(value, 2)) if known else '—'}</td>"
            )
        rows += f"<tr><th>{escaped(layer)}</th>{cells}</tr>"
    unit = f", {found['unit']}" if found["unit"] else ""
    name = found["name"].replace("_", " ")
    return (
        f'<div><h3>{escaped(name + unit)}</h3><table class="map"><thead><tr><th></th>{columns}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def _colours(share: float) -> tuple[str, str]:
    """Background at a share of the scale, and letters that can be read on it."""
    place = min(max(share, 0.0), 1.0) * (len(_STOPS) - 1)
    index = min(int(place), len(_STOPS) - 2)
    mixed = [round(a + (b - a) * (place - index)) for a, b in zip(_STOPS[index], _STOPS[index + 1], strict=True)]
    return f"rgb({mixed[0]},{mixed[1]},{mixed[2]})", "#000" if share > 0.55 else "#fff"
