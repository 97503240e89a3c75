"""kill -9 at chosen and at random moments: nothing is half, nothing is lost, and what goes on ends as if never stopped.

Moments are counted in a run that is left alone (see `injected.Moments`): each change to the file system, each fsync,
each training step and evaluation of a split. Half of the kills are at one, half a few milliseconds after it.
"""

import csv
import json
import random
import signal
from collections import Counter
from pathlib import Path

import pytest
from forking import ForkServer
from run_metrics import records, without_clock
from wholeness import Undisturbed, check_whole, leftovers, weights

pytestmark = pytest.mark.slow

KILLS = {"prepare": 12, "training": 8, "evaluation": 8, "checkpoint": 16, "export": 12, "other": 6}
STUDY_KILLS = 8
LONGEST_DELAY = 0.01  # seconds: of a training step or the writing of a file


@pytest.fixture(scope="module")
def counts(server: ForkServer, small: list[str], tmp_path_factory: pytest.TempPathFactory) -> Counter[str]:
    place = tmp_path_factory.mktemp("counted")
    fault = {"kind": "counted", "roots": [str(place)], "counts": str(place / "counts")}
    arguments = ["train", *small, f"hydra.run.dir={place / 'run'}"]
    assert server.run(arguments, log=place / "log", cwd=place, fault=fault, NATATTN_CACHE=str(place / "cache")) == 0
    found = Counter((place / "counts").read_text().split())
    assert set(found) == set(KILLS)
    return found


@pytest.mark.parametrize(("stage", "kills"), KILLS.items(), ids=KILLS)
def test_a_killed_run_goes_on_to_the_same(
    stage: str,
    kills: int,
    server: ForkServer,
    small: list[str],
    counts: Counter[str],
    undisturbed: Undisturbed,
    tmp_path: Path,
):
    generator = random.Random(stage)
    expected, expected_weights = records(undisturbed.folder), weights(undisturbed.folder)
    killed = 0
    for attempt in range(kills):
        place = tmp_path / str(attempt)
        folder, cache = place / "run", place / "cache"
        cache = cache if stage in ("prepare", "other") else undisturbed.cache
        number = generator.randint(1, counts[stage])
        delay = generator.choice((0.0, generator.uniform(0, LONGEST_DELAY)))
        # One in three is killed again while it goes on.
        for sitting in range(1 if generator.random() < 2 / 3 else 2):
            again = generator.randint(1, max(counts[stage] // 2, 1))
            fault = {
                "kind": "killed",
                "roots": [str(place)],
                "stage": stage,
                "number": again if sitting else number,
                "delay": delay,
                "sizes": str(tmp_path / "sizes"),
            }
            options = {"log": tmp_path / "log", "cwd": tmp_path, "NATATTN_CACHE": str(cache)}
            code = server.run(_command(small, folder), fault=fault, **options)
            where = f"{stage} moment {fault['number']} + {1000 * delay:.1f} ms, sitting {sitting}"
            assert code in ((-signal.SIGKILL, 0) if sitting or delay else (-signal.SIGKILL,)), where
            killed += code < 0
            _check_killed(folder, tmp_path / "sizes", expected, where)
            if cache.exists():
                check_whole(cache)
        code = server.run(_command(small, folder), **options)
        said = (tmp_path / "log" / "stderr.txt").read_text()
        assert code == 0, (where, said)
        assert "Traceback" not in said, where
        assert records(folder) == expected, where
        assert weights(folder) == expected_weights, where
        assert check_whole(place) > 15, where
        assert leftovers(folder) == [], where
        assert leftovers(cache) == [], where
    print(f"{stage}: {killed} of {kills} runs or more were killed")
    assert killed >= kills


def _command(small: list[str], folder: Path) -> list[str]:
    """To begin with, or to go on."""
    if (folder / "config.yaml").exists():
        return ["train", f"resume={folder}"]
    return ["train", *small, f"hydra.run.dir={folder}"]


def _check_killed(folder: Path, sizes: Path, expected: list[tuple], where: str) -> None:
    """All is whole, and the metrics before the last evaluation are there."""
    check_whole(folder)
    metrics = folder / "metrics.jsonl"
    if not metrics.exists():
        return
    content = metrics.read_bytes()
    lasting = int(sizes.read_text() or 0)  # after the last evaluation of this sitting
    assert len(content) >= lasting, where
    whole_lines = content[: content.rfind(b"\n") + 1].splitlines()
    found = without_clock([json.loads(line) for line in whole_lines])
    assert found == expected[: len(found)], where


def test_a_killed_study_ends_the_same(server: ForkServer, undisturbed: Undisturbed, tmp_path: Path):
    command = ["reproduce", "study=theorems", "budget=smoke"]
    place = tmp_path / "whole"
    place.mkdir()
    options = {"log": tmp_path / "log", "NATATTN_CACHE": str(undisturbed.cache)}
    fault = {"kind": "counted", "roots": [str(place)], "counts": str(tmp_path / "counts")}
    warming = tmp_path / "warming"
    warming.mkdir()
    assert server.run(command, cwd=warming, **options) == 0  # fills the token cache
    assert server.run(command, cwd=place, fault=fault, **options) == 0
    moments = len((tmp_path / "counts").read_text().split())
    expected = _tables(place)
    assert _tables(warming) == expected
    generator = random.Random("study")
    for attempt in range(STUDY_KILLS):
        place = tmp_path / str(attempt)
        place.mkdir()
        number, delay = generator.randint(1, moments), generator.choice((0.0, generator.uniform(0, LONGEST_DELAY)))
        fault = {
            "kind": "killed",
            "roots": [str(place)],
            "stage": None,
            "number": number,
            "delay": delay,
            "sizes": str(tmp_path / "sizes"),
        }
        code = server.run(command, cwd=place, fault=fault, **options)
        where = f"moment {number} of {moments} + {1000 * delay:.1f} ms"
        assert code == -signal.SIGKILL or (code == 0 and delay), where
        check_whole(place)
        code = server.run(command, cwd=place, **options)
        assert code == 0, (where, (tmp_path / "log" / "stderr.txt").read_text())
        assert _tables(place) == expected, where
        check_whole(place)
        assert not list(place.rglob("checkpoints")), where


def _tables(place: Path) -> dict[str, list[list[str]]]:
    """Every CSV table of the study, without its columns of time."""
    found = {}
    for path in sorted(place.glob("outputs/reproduce/*/tables/*.csv")):
        headings, *rows = csv.reader(path.read_text(encoding="utf-8").splitlines())
        kept = [place for place, heading in enumerate(headings) if not heading.startswith(("seconds", "step time"))]
        found[path.name] = [[row[place] for place in kept] for row in (headings, *rows)]
    assert found
    return found
