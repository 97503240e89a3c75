"""`natattn report`: the result table of runs, a page of it, and the comparison of two runs."""

import sys
from pathlib import Path

from natattn.cli.help import REPORT_HELP
from natattn.errors import UserError
from natattn.storage.redaction import one_line


def report(arguments: list[str]) -> int:
    """Print the table of finished and unfinished runs, and write the page."""
    if "--help" in arguments or "-h" in arguments:
        print(REPORT_HELP, end="")
        return 0
    from natattn.analysis.run_comparison import compare_runs, print_comparison
    from natattn.analysis.summary import print_report
    from natattn.reproduce.run_report import read_arguments, report_path, write_run_report
    from natattn.training.run_folder import CONFIG

    folders, output = read_arguments(arguments)
    runs = print_report(folders, stream=sys.stdout)
    pair = [Path(folder) for folder in folders if (Path(folder) / CONFIG).is_file()]
    if len(pair) == len(runs) == 2 and all(run.status in ("finished", "diverged") for run in runs):
        try:
            print_comparison(compare_runs(*pair), stream=sys.stdout)
        except UserError as error:
            print(one_line(f"the two runs cannot be compared in detail: {error}"))
    page = report_path(folders, output)
    write_run_report(page, folders, runs)
    print(one_line(f"report: {page}"))
    return 0
