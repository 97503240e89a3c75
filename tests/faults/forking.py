"""natattn commands in forked children of one process that has imported everything: a start costs nothing.

As a script this is that process: it reads requests on standard input, a JSON object a line, and answers on standard
output. It runs no command itself, so that it has no threads when it forks.
"""

import contextlib
import importlib
import json
import os
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any, Self

HERE = Path(__file__).parent
# What a run imports on its way, besides `natattn.cli.run`.
PRELOADED = (
    "natattn.cli.run",
    "natattn.training.train",
    "natattn.stacked.replicas",
    "natattn.training.resource_errors",
    "natattn.analysis.analyze",
    "natattn.analysis.summary",
    "natattn.analysis.run_curves",
    "natattn.reproduce.reproduce",
    "natattn.reproduce.study",
    "natattn.reproduce.ledger",
    "natattn.reproduce.run_report",
    "hydra.main",
    "transformers.models.gpt2.modeling_gpt2",
    "tokenizers",
    "matplotlib.backends.backend_agg",
)


class ForkServer:
    """Starts natattn commands in forked children; a context manager."""

    def __enter__(self) -> Self:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)

    def start(
        self, arguments: list[str], *, log: Path, cwd: Path, fault: dict[str, Any] | None = None, **more: str
    ) -> int:
        """Start `natattn arguments`; its process id.

        Args:
            log: a folder for its stdout and stderr.
            fault: the arguments of a function of `injected`, and its name as "kind".
            more: environment variables.
        """
        log.mkdir(parents=True, exist_ok=True)
        content = {"arguments": arguments, "log": str(log), "cwd": str(cwd), "fault": fault, "environment": more}
        return self._ask(start=content)

    def wait(self, pid: int) -> int:
        """The exit code of a child when it has ended; of one that was killed, minus the signal's number."""
        return self._ask(wait=pid)

    def run(self, arguments: list[str], **options: Any) -> int:
        """Start and wait."""
        return self.wait(self.start(arguments, **options))

    def _ask(self, **request: Any) -> int:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())


def serve() -> None:
    """Answer requests until standard input ends."""
    for module in PRELOADED:
        importlib.import_module(module)
    for line in sys.stdin:
        request = json.loads(line)
        if "start" in request:
            answer = os.fork() or _child(request["start"])
        else:
            answer = os.waitstatus_to_exitcode(os.waitpid(request["wait"], 0)[1])
        print(answer, flush=True)


def _child(request: dict[str, Any]) -> int:
    """Run a command in this process, which does not come back."""
    code = 70
    try:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for number, name in ((1, "stdout"), (2, "stderr")):
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
            os.dup2(os.open(Path(request["log"]) / f"{name}.txt", flags, 0o644), number)
        os.chdir(request["cwd"])
        os.environ.update(request["environment"])
        if (fault := request["fault"]) is not None:
            import injected

            getattr(injected, fault.pop("kind"))(**fault)
        from natattn.cli.main import main

        code = main(request["arguments"])
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    sys.path.insert(0, str(HERE))
    serve()
