"""A very long run, very many runs and a very long sweep, watched: memory, open files and disk must not grow.

    python scripts/soak.py steps --steps 100000
    python scripts/soak.py runs --jobs 200   # one after the other in one process
    python scripts/soak.py sweep --jobs 200  # the same by Hydra's launcher

Needs Linux (/proc). Prints a line for each of ten parts of the time and a verdict; exits with 1 where something grows.
What a run must write, its metrics file, is not counted as growth of the disk; nor is what a sweep's runs keep, which is
compared per job.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

SMALLEST = (
    "model=standard",
    "reference=none",
    "optim=adamw",
    "size.n_layer=1",
    "size.n_embd=8",
    "size.n_head=1",
    "size.context=8",
    "tokenizer=byte",
    "data=grammar",
    "data.train_tokens=20000",
    "data.validation_tokens=2000",
    "data.test_tokens=2000",
    "tracker=off",
    "train.batch_size=1",
    "train.max_seconds=null",
    "train.device=cpu",
)
WARM_SHARE = 0.2  # of the samples, at the start, in which caches fill
MOST_MEMORY = 16.0  # MiB that the trend may add from there to the end
MOST_FILES = 2.0  # open files
MOST_DISK = 0.5  # MiB, beside what is meant to be kept


@dataclass(frozen=True)
class Sample:
    """Of the process and its folder at one time."""

    seconds: float
    memory: float  # MiB resident
    files: int
    disk: float  # MiB, without metrics files
    folders: int  # runs begun
    models: int  # runs that have exported theirs, and draw their curves


def sample(pid: int, folder: Path, started: float) -> Sample | None:
    """None when the process has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        memory = int(status.split("VmRSS:")[1].split()[0]) / 1024
        files = len(os.listdir(f"/proc/{pid}/fd"))
    except (OSError, IndexError):
        return None
    disk, folders, models = 0, 0, 0
    for path, _, names in os.walk(folder):
        folders += "config.yaml" in names
        models += Path(path).name == "model"
        for name in names:
            try:
                disk += 0 if name == "metrics.jsonl" else os.stat(os.path.join(path, name)).st_size
            except OSError:
                continue  # a temporary file that has gone
    return Sample(time.monotonic() - started, memory, files, disk / 2**20, folders, models)


# Many runs in one process: its arguments are those of each, with their number for {}.
MANY = """
import sys
from natattn.cli.main import main
for number in range(int(sys.argv[1])):
    if code := main([each.format(number) for each in sys.argv[2:]]):
        sys.exit(code)
"""


def watch(command: list[str], folder: Path, every: float) -> tuple[int, list[Sample]]:
    """Run Python on arguments and look at it; its exit code and the samples."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, *command]
    log = (folder.parent / "log.txt").open("w")
    with log, subprocess.Popen(command, stdout=log, stderr=log, cwd=folder.parent, env=environment) as process:
        started, samples = time.monotonic(), []
        while process.poll() is None:
            found = sample(process.pid, folder, started)
            if found is not None:
                samples.append(found)
            time.sleep(every)
    return process.returncode, samples


def trend(samples: list[Sample], values: list[float]) -> float:
    """How much a straight line through the values after the warm-up rises from there to the end."""
    seconds = np.array([each.seconds for each in samples])
    kept = seconds >= seconds[0] + WARM_SHARE * (seconds[-1] - seconds[0])
    if kept.sum() < 3:
        raise SystemExit("too few samples: make it longer, or --every smaller")
    slope = np.polyfit(seconds[kept], np.array(values)[kept], 1)[0]
    return float(slope * (seconds[kept][-1] - seconds[kept][0]))


def judge(samples: list[Sample], disk: list[float]) -> bool:
    """Print parts and trends; whether all is flat."""
    for number in np.linspace(0, len(samples) - 1, 10).astype(int):
        each = samples[number]
        print(f"{each.seconds:7.0f} s  {each.memory:7.1f} MiB  {each.files:3d} files  {each.disk:8.3f} MiB on disk")
    limits = {
        "memory, MiB": (trend(samples, [each.memory for each in samples]), MOST_MEMORY),
        "open files": (trend(samples, [float(each.files) for each in samples]), MOST_FILES),
        "disk, MiB": (trend(samples, disk), MOST_DISK),
    }
    for name, (rise, most) in limits.items():
        print(f"{name}: trend {rise:+.3f} over {samples[-1].seconds:.0f} s; at most {most:g}")
    return all(rise <= most for rise, most in limits.values())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("steps", "runs", "sweep"))
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--every", type=float, default=1.0, help="seconds between samples")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "out"
        os.environ["NATATTN_CACHE"] = str(Path(place) / "cache")
        short = [*SMALLEST, "train.steps=4", "train.evaluate_every=4", "train.checkpoint_every=4"]
        short += ["schedule.warmup_fraction=0.25"]
        if options.what == "steps":
            rare = max(options.steps // 20, 1)
            command = ["-m", "natattn", "train", *SMALLEST, f"train.steps={options.steps}", f"hydra.run.dir={folder}"]
            command += [f"train.evaluate_every={rare}", f"train.checkpoint_every={rare}", "train.log_every=100"]
        elif options.what == "runs":
            command = ["-c", MANY, str(options.jobs), "train", *short, "seed={}", f"hydra.run.dir={folder}/{{}}"]
        else:
            seeds = ",".join(map(str, range(options.jobs)))
            command = ["-m", "natattn", "train", "-m", *short, f"seed={seeds}", f"hydra.sweep.dir={folder}"]
        code, samples = watch(command, folder, options.every)
        samples = [each for each in samples if each.folders and (options.what != "steps" or not each.models)]
        if code != 0 or not samples:
            print((Path(place) / "log.txt").read_text()[-2000:])
            return 1
        ended = sum((path.read_text().count('"finished"') > 0) for path in folder.rglob("run.json"))
        print(f"{options.what}: {ended} runs finished")
        # A sweep keeps each of its runs: what one takes must stay the same.
        disk = [each.disk if options.what == "steps" else each.disk / each.folders for each in samples]
        return 0 if judge(samples, disk) else 1


if __name__ == "__main__":
    sys.exit(main())
