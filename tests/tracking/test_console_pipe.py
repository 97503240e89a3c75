"""What becomes of a training whose output nobody reads any more."""

import subprocess
import sys
from pathlib import Path

import pytest

from natattn.tracking.metrics_file import read_metrics

EVALUATIONS = 50

TRAINING = f"""
import sys
from pathlib import Path
from natattn.tracking import Record
from natattn.tracking.console import Console
from natattn.tracking.metrics_file import MetricsFile

facts = {{"label": "run", "reference": None, "candidate": "natural", "arms": {{"natural": {{}}}}}}
with MetricsFile(Path(sys.argv[1])) as metrics, Console(facts, total_steps={EVALUATIONS}) as console:
    for step in range({EVALUATIONS}):
        records = [Record(step, "natural", "validation/loss", 5.0, float(step))]
        metrics.log(records)
        console.log(records)
        if step == 0:
            sys.stdin.read()  # until the reader has gone
        console.warning("it is hot")
        print("from another library")
        print("and a word to standard error", file=sys.stderr, flush=True)
print("the table of the run")
Path(sys.argv[1]).with_name("end").touch()
"""


def train(folder: Path, *, stderr: int) -> subprocess.Popen[bytes]:
    """Starts the script; its reader reads the first line and goes away."""
    command = [sys.executable, "-c", TRAINING, str(folder / "metrics.jsonl")]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr)
    assert process.stdout is not None
    assert process.stdin is not None
    assert process.stdout.readline().startswith(b"step 0/")
    process.stdout.close()
    process.stdin.close()
    return process


@pytest.mark.parametrize("stderr", [subprocess.PIPE, subprocess.STDOUT], ids=["| head -1", "2>&1 | head -1"])
def test_a_reader_that_goes_away_does_not_end_the_training(tmp_path: Path, stderr: int) -> None:
    with train(tmp_path, stderr=stderr) as process:
        said = process.stderr.read().decode() if process.stderr else ""
        assert process.wait(timeout=60) == 0
    assert len(read_metrics(tmp_path / "metrics.jsonl").step) == EVALUATIONS
    assert (tmp_path / "end").exists()
    words = ["and a word to standard error"] * EVALUATIONS
    assert said.splitlines() == (words if process.stderr else [])  # no noise at exit
