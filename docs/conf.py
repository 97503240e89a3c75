"""Sphinx configuration: `python -m sphinx -W docs build/site` builds a site that opens offline."""

import re
from typing import Any

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml

project = "natattn"
author = copyright = "The natattn authors"
extensions = ["myst_parser"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
# Records of analyses are not pages.
exclude_patterns = ["results/analyses"]
# Generated tables begin with a heading of the third level.
suppress_warnings = ["myst.header"]
html_theme = "furo"
html_title = "natattn"
html_copy_source = False
html_show_sourcelink = False
html_math_renderer = "mathml"
pygments_style = "friendly"
html_static_path = ["_static"]
html_css_files = ["formulas.css"]

# {page: [(heading in the navigation, its pages)]}; not in the pages themselves, which are also read as plain Markdown.
NAVIGATION = {
    "index": [
        ("Begin", ["first_hour", "configuration", "attention", "extending"]),
        ("Use", ["optimizers", "data", "analysis", "reproduce", "distributed"]),
        ("Reference", ["measures", "performance", "security", "licences", "results/README"]),
    ],
    "results/README": [
        ("Accounts", ["results/published", "results/screening", "results/criticality", "results/minilm"]),
        ("Pages of analyses", ["results/analysis/*"]),
        ("Tables", ["results/studies/all_cpu/tables/*"]),
    ],
}


def add_navigation(app: Any, page: str, source: list[str]) -> None:
    """Append hidden tables of contents to a page."""
    for heading, below in NAVIGATION.get(page, ()):
        lines = "\n".join(f"/{name}" for name in below)
        source[0] += f"\n```{{toctree}}\n:hidden:\n:glob:\n:caption: {heading}\n\n{lines}\n```\n"


def link_to_files(app: Any, page: str, source: list[str]) -> None:
    """Point links to a run's folder at its run.json, because a site shows no folders."""
    source[0] = re.sub(r"(\]\([./]*runs/[0-9a-f]{16})\)", r"\1/run.json)", source[0])


def write_formula(translator: Any, node: nodes.Element) -> None:
    """Render a formula as MathML: Sphinx's own renderer would fetch a script when a page opens."""
    translator.body.append(tex2mathml(node.astext(), as_block=isinstance(node, nodes.math_block)))
    raise nodes.SkipNode


def setup(app: Any) -> None:
    """Set up the extension (called by Sphinx)."""
    app.connect("source-read", add_navigation)
    app.connect("source-read", link_to_files)
    app.add_html_math_renderer("mathml", (write_formula, None), (write_formula, None))
