"""Keep what is needed of finished runs, as small folders beside the tables that are made of them.

    python scripts/keep_runs.py outputs/screening
    python scripts/keep_runs.py outputs/repeats --metrics validation/,attention/layer_0/heat_,attention/layer_1/heat_

Copies configuration, environment, facts, and losses and times at evaluation steps into docs/results/runs/<hash>, the
first 16 digits of the run's configuration hash. Runs that have not ended are passed over; one that is kept already is
replaced.
"""

import argparse
import json
import shutil
import sys
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from natattn.analysis.runs import find_runs, read_facts
from natattn.errors import UserError
from natattn.tracking.metrics_file import FILE_NAME, read_metrics
from natattn.training.environment import ENVIRONMENT
from natattn.training.run_folder import CONFIG, RUN, flatten, read_config

KEPT = Path(__file__).parent.parent / "docs" / "results" / "runs"
LARGEST = 50_000  # bytes, of all files of a run
# What tables are made of; curves of every role and layer would be most of the bytes.
LOSSES = ("validation/loss", "test/", "time/train_seconds")  # of runs that were evaluated often, this is all
METRICS = ("validation/", "test/", "train/loss", "time/", "attention/layer_*/pattern_divergence")


def main() -> int:
    """Keep the runs in the folders given."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folders", nargs="+")
    parser.add_argument(
        "--metrics",
        default=",".join(METRICS),
        help="comma-separated beginnings of names, or patterns with * (default: %(default)s)",
    )
    options = parser.parse_args()
    try:
        for folder in find_runs(options.folders):
            if read_facts(folder)["status"] in ("finished", "diverged", "time_limit"):
                keep(folder, tuple(options.metrics.split(",")))
    except UserError as error:
        print(f"keep_runs: {error}", file=sys.stderr)
        return 2
    return 0


def keep(folder: Path, names: tuple[str, ...] = METRICS) -> None:
    """Copy one run; of a large one only its losses.

    Raises: UserError for one that names a machine's folders, or is too large.
    """
    for key, value in flatten(read_config(folder)).items():
        if isinstance(value, str) and Path(value).is_absolute():
            raise UserError(f"{folder}: {key}={value}: names a folder of this machine; train with a relative path")
    facts, metrics = read_facts(folder), read_metrics(folder / FILE_NAME)
    evaluated = {int(step) for arm in facts["arms"] for step in metrics.select(arm=arm, name="validation/loss")[0]}
    with (folder / FILE_NAME).open(encoding="utf-8") as lines:
        records = [record for line in lines if is_needed(record := json.loads(line), evaluated, names)]
    # Without the spaces that JSON does not need: they are a tenth of the bytes.
    kept = "".join(json.dumps(record, separators=(",", ":")) + "\n" for record in records)
    size = len(kept) + sum((folder / name).stat().st_size for name in (CONFIG, ENVIRONMENT, RUN))
    if size > LARGEST and names != LOSSES:
        return keep(folder, LOSSES)
    if size > LARGEST:
        raise UserError(f"{folder}: {size} bytes to keep; valid: at most {LARGEST}, so evaluate more seldom")
    target = KEPT / facts["config_hash"][:16]
    target.mkdir(parents=True, exist_ok=True)
    for name in (CONFIG, ENVIRONMENT, RUN):
        shutil.copyfile(folder / name, target / name)
    (target / FILE_NAME).write_text(kept, encoding="utf-8")


def is_needed(record: dict[str, Any], evaluated: set[int], names: tuple[str, ...]) -> bool:
    """Whether a line of the metrics file is kept."""
    name: str = record["name"]
    wanted = any(fnmatchcase(name, each if "*" in each else f"{each}*") for each in names)
    return name == "diverged" or (record["step"] in evaluated and wanted)


if __name__ == "__main__":
    sys.exit(main())
