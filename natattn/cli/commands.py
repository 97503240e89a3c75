"""The sub-commands: from their arguments to an exit code."""

import sys
from pathlib import Path
from textwrap import indent

from natattn.cli.help import ANALYZE_HELP, REPORT_HELP, REPRODUCE_HELP, SAMPLE_HELP
from natattn.cli.train import train
from natattn.config import compose as config
from natattn.config.messages import unknown_key
from natattn.errors import UserError
from natattn.storage.redaction import one_line

__all__ = ["analyze", "report", "reproduce", "sample", "train"]


def report(arguments: list[str]) -> int:
    """`natattn report`: the table of finished (and unfinished) runs, and a page of them."""
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


def sample(arguments: list[str]) -> int:
    """`natattn sample`: text from a trained arm."""
    if "--help" in arguments or "-h" in arguments:
        print(SAMPLE_HELP, end="")
        return 0
    from natattn.training.sampling import SampleSettings, sample_text

    values = {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals:
            raise UserError(f"{argument}: not understood; write key=value")
        if key not in SampleSettings.model_fields:
            raise UserError(unknown_key(key, sorted(SampleSettings.model_fields)))
        values[key] = value
    if "run" not in values:
        raise UserError("run: missing; give run=FOLDER, the folder of a run")
    for text in sample_text(config.validated(values, SampleSettings)):
        print(text, end="", flush=True)
    print()
    return 0


def analyze(arguments: list[str]) -> int:
    """`natattn analyze`: a page about a model's attention."""
    if "--help" in arguments or "-h" in arguments:
        print(ANALYZE_HELP + indent(config.own_values("analyze"), "  "), end="")
        return 0
    from natattn.analysis.analyze import analyze as analyze_subject
    from natattn.analysis.analyze import print_summary
    from natattn.analysis.settings import AnalyzeSettings

    composed = config.compose(config.quote_paths(arguments), "analyze")
    settings = config.validated(config.plain_values(composed), AnalyzeSettings)
    config.refuse_secrets(settings)
    page, sections = analyze_subject(settings)
    print_summary(sections, stream=sys.stdout)
    print(one_line(f"analysis: {page}"))
    return 0


def reproduce(arguments: list[str]) -> int:
    """`natattn reproduce`: the papers' tables and figures, from studies that anyone can repeat."""
    studies = config.groups()["study"]
    if "--help" in arguments or "-h" in arguments:
        listed = "".join(f"  {name:<12} {config.description('study', name)}\n" for name in studies)
        print(REPRODUCE_HELP.format(studies=listed, keys=indent(config.own_values("reproduce"), "  ")), end="")
        return 0
    from natattn.reproduce.reproduce import reproduce as reproduce_studies
    from natattn.reproduce.show import print_results
    from natattn.reproduce.study import read_arguments

    page, results = reproduce_studies(read_arguments(arguments))
    print_results(results, stream=sys.stdout)
    print(one_line(f"report: {page}"))
    return 1 if any(result.failures for result in results) else 0
