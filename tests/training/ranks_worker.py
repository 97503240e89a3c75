"""What each rank runs in the tests of several ranks: a list of runs, one after the other.

    torchrun --nproc-per-node=2 ranks_worker.py JOBS.json

JOBS.json holds [[overrides, folder], …]; a run that fails leaves its line in ``folder/error.txt``.
"""

import json
import sys
from pathlib import Path

from natattn.cli.exit_codes import hard_exit
from natattn.cli.torchrun import run_on_all_ranks
from natattn.errors import UserError
from natattn.training.settings import compose_run
from natattn.training.train import train


def work(ranks, _):
    for overrides, folder in json.loads(Path(sys.argv[1]).read_text()):
        try:
            train(compose_run(overrides), Path(folder), ranks=ranks)
        except UserError as error:
            Path(folder).mkdir(parents=True, exist_ok=True)
            (Path(folder) / f"error_{ranks.rank}.txt").write_text(str(error))
    return 0


hard_exit(run_on_all_ranks(work))
