"""`natattn reproduce`: the papers' tables and figures from studies."""

import sys
from textwrap import indent

from natattn.cli.help import REPRODUCE_HELP
from natattn.config.compose import command_defaults, description, groups
from natattn.storage.redaction import one_line


def reproduce(arguments: list[str]) -> int:
    """Rebuild the tables and figures of studies; return 1 if a run failed."""
    if "--help" in arguments or "-h" in arguments:
        studies = "".join(f"  {name:<12} {description('study', name)}\n" for name in groups()["study"])
        print(REPRODUCE_HELP.format(studies=studies, keys=indent(command_defaults("reproduce"), "  ")), end="")
        return 0
    from natattn.reproduce.ledger import print_results
    from natattn.reproduce.reproduce import reproduce as reproduce_studies
    from natattn.reproduce.study import read_arguments

    page, results = reproduce_studies(read_arguments(arguments))
    print_results(results, stream=sys.stdout)
    print(one_line(f"report: {page}"))
    return 1 if any(result.failures for result in results) else 0
