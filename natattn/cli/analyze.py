"""`natattn analyze`: a page about a model's attention, or about several runs."""

import sys
from textwrap import indent

from natattn.cli.help import ANALYZE_HELP
from natattn.config.compose import command_defaults, compose, plain_values, quote_paths, refuse_secrets, validated
from natattn.storage.redaction import one_line


def analyze(arguments: list[str]) -> int:
    """Analyze a model or several runs, print the summary, and write the page."""
    if "--help" in arguments or "-h" in arguments:
        print(ANALYZE_HELP + indent(command_defaults("analyze"), "  "), end="")
        return 0
    from natattn.analysis.analyze import analyze as analyze_subject
    from natattn.analysis.analyze import print_summary
    from natattn.analysis.settings import AnalyzeSettings

    settings = validated(plain_values(compose(quote_paths(arguments), "analyze")), AnalyzeSettings)
    refuse_secrets(settings)
    page, sections = analyze_subject(settings)
    print_summary(sections, stream=sys.stdout)
    print(one_line(f"analysis: {page}"))
    return 0
