"""How Sphinx makes a site of these pages: `python -m sphinx -W docs outputs/site`. It opens from the disk, offline."""

import re
from typing import Any

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml

project = "natattn"
author = copyright = "The natattn authors"
extensions = ["myst_parser"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
# Thousands of files of kept runs and analyses: no page is made of them.
exclude_patterns = ["results/runs", "results/analyses"]
# Tables that the program writes begin with a heading of the third level.
suppress_warnings = ["myst.header"]
html_theme = "furo"
html_title = "natattn"
html_copy_source = False
html_show_sourcelink = False
html_math_renderer = "mathml"


def write_formula(translator: Any, node: nodes.Element) -> None:
    """A formula as MathML, which browsers show by themselves: Sphinx's own way fetches a script when a page opens."""
    translator.body.append(tex2mathml(node.astext(), as_block=isinstance(node, nodes.math_block)))
    raise nodes.SkipNode


def link_to_files(app: Any, page: str, source: list[str]) -> None:
    """Links to the folder of a kept run lead to the file in it that says what the run was: a site has no folders."""
    source[0] = re.sub(r"(\]\([./]*runs/[0-9a-f]{16})\)", r"\1/run.json)", source[0])


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.connect("source-read", link_to_files)
    app.add_html_math_renderer("mathml", (write_formula, None), (write_formula, None))
