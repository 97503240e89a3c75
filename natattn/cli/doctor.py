"""`natattn doctor`: check this installation and machine, and give advice for every problem.

Only the standard library is imported before a check needs more, so that the doctor works on a broken installation.
"""

import contextlib
import importlib
import io
import os
import platform
import shutil
import tempfile
import time
import tomllib
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from natattn.cli.help import DOCTOR_HELP
from natattn.errors import UserError
from natattn.storage.redaction import one_line, redacted

STEPS = 20
# Modules whose name differs from that of their package.
_MODULES = {"hydra-core": "hydra", "scikit-learn": "sklearn", "pillow": "PIL", "pyyaml": "yaml"}
_LITTLE_MEMORY = 1 << 30  # bytes; a default run takes about half of it
_LITTLE_SPACE, _TOO_LITTLE_SPACE = 2 << 30, 100 << 20  # bytes; a default run takes some ten MiB, size=small about 5 GiB
_SMALL_RUN = (
    *("size=pico", "size.n_layer=2", "size.n_embd=32", "size.n_head=2", "size.context=32", "tokenizer=byte"),
    *("data=grammar", "data.train_tokens=20000", "data.validation_tokens=1000", "data.test_tokens=0", "tracker=off"),
    *("schedule=constant", "schedule.warmup_steps=5", "train.batch_size=8", "train.max_seconds=120"),
    *(f"train.steps={STEPS}", f"train.evaluate_every={STEPS}"),
)


@dataclass(frozen=True)
class Finding:
    """Result of one check.

    Attributes:
        state: "note" for something that could be better, "broken" for something that does not work.
        advice: what to do about it, in one line; empty if the state is "ok".
    """

    name: str
    value: str
    state: Literal["ok", "note", "broken"] = "ok"
    advice: str = ""

    def __str__(self) -> str:
        line = f"{self.state}: {self.name}: {self.value}" + (f" → {self.advice}" if self.advice else "")
        return one_line(redacted(line))


def doctor(arguments: list[str]) -> int:
    """Run all checks, print a line for each, and return 1 if something is broken, else 0."""
    if "--help" in arguments or "-h" in arguments:
        print(DOCTOR_HELP, end="")
        return 0
    for argument in arguments:
        if argument not in ("quick=true", "quick=false"):
            raise UserError(f"{argument}: unknown argument. Use quick=true or quick=false.")
    findings = []
    for finding in examine(quick="quick=true" in arguments):
        print(finding, flush=True)
        findings.append(finding.state)
    broken, notes = findings.count("broken"), findings.count("note")
    summary = f"{broken} broken" if broken else "no problems found"
    print(f"natattn doctor: {summary}{f', {notes} notes' if notes else ''}")
    return 1 if broken else 0


def examine(*, quick: bool) -> Iterator[Finding]:
    """Yield the findings of all checks; a check that raises is a finding too. ``quick`` skips training."""
    checks: list[tuple[str, Callable[[], Iterator[Finding]]]] = [
        ("versions", versions),
        ("devices", devices),
        ("folders", folders),
    ]
    for name, check in checks if quick else [*checks, ("training", training)]:
        try:
            yield from check()
        except Exception as error:
            advice = "fix what is reported above first; if nothing is, report this as a bug"
            yield Finding(name, f"the check failed: {_cause(error)}", "broken", advice)


def versions() -> Iterator[Finding]:
    """Check the versions of Python and of every required package, and import each of them."""
    python, requirements = _requirements()
    version = platform.python_version()
    if _fits(version, python):
        yield Finding("Python", version)
    else:
        yield Finding("Python", f"{version} is not {python}", "broken", f"create an environment with Python {python}")
    for requirement in requirements:
        name = requirement.partition(";")[0].split("[")[0].strip()
        for sign in "<>=!~ ":
            name = name.partition(sign)[0]
        required = requirement.partition(";")[0].removeprefix(name).strip()
        install = f'python -m pip install "{requirement}"'
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            yield Finding(name, "not installed", "broken", install)
            continue
        try:
            with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                importlib.import_module(_MODULES.get(name, name.replace("-", "_")))
        except (Exception, SystemExit) as error:
            reinstall = f"{install} --force-reinstall"
            yield Finding(name, f"{version} cannot be imported: {_cause(error)}", "broken", reinstall)
            continue
        if _fits(version, required):
            yield Finding(name, version)
        else:
            yield Finding(name, f"{version} is not {required}", "broken", install)


def _requirements() -> tuple[str, list[str]]:
    """Return the required Python and packages, from pyproject.toml in a checkout, else from the installed package."""
    project = Path(__file__).resolve().parents[2] / "pyproject.toml"
    if project.is_file():
        content = tomllib.loads(project.read_text(encoding="utf-8")).get("project", {})
        if content.get("name") == "natattn":
            return content["requires-python"], list(content["dependencies"])
    python = metadata.metadata("natattn")["Requires-Python"]
    return python, [line for line in metadata.requires("natattn") or [] if "extra ==" not in line]


def _fits(version: str, required: str) -> bool:
    try:
        from packaging.specifiers import SpecifierSet
    except ImportError:
        return True
    return SpecifierSet(required).contains(version, prereleases=True)


def devices() -> Iterator[Finding]:
    """Check threads and GPUs, and compute attention forward and backward on the device that a run would use."""
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = torch.get_num_threads()
    if threads > cores:
        yield Finding("threads", f"{threads} on {cores} cores", "note", f"export OMP_NUM_THREADS={cores}")
    else:
        yield Finding("threads", f"{threads} on {cores} cores")
    has_driver = Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi")
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(index)
            value = f"{torch.cuda.get_device_name(index)}, {_size(free)} of {_size(total)} free"
            if free < _LITTLE_MEMORY:
                yield Finding(f"cuda:{index}", value, "note", "choose another GPU with CUDA_VISIBLE_DEVICES")
            else:
                yield Finding(f"cuda:{index}", value)
    elif not has_driver or os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        yield Finding("GPU", "none visible; training uses the CPU")
    elif torch.version.cuda is None:
        advice = "install a build of torch with CUDA: pytorch.org/get-started"
        yield Finding("GPU", f"there is an NVIDIA driver, but torch {torch.__version__} has no CUDA", "note", advice)
    else:
        advice = f"run nvidia-smi; the driver must support CUDA {torch.version.cuda}"
        yield Finding("GPU", "there is an NVIDIA driver, but torch finds no CUDA device", "broken", advice)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    query = torch.randn(1, 2, 16, 8, device=device, requires_grad=True)
    output = torch.nn.functional.scaled_dot_product_attention(query, query, query, is_causal=True)
    (gradient,) = torch.autograd.grad(output.sum(), query)
    if bool(gradient.isfinite().all()):
        yield Finding("attention", f"works on {device}")
    else:
        yield Finding("attention", f"its gradient is not finite on {device}", "broken", "install torch again")


def folders() -> Iterator[Finding]:
    """Check that files can be written to outputs/ and to the cache, and that there is room."""
    from natattn.data.cache import cache_root

    advice = {
        Path("outputs"): "choose another folder with hydra.run.dir=FOLDER, or make room",
        cache_root(): "set NATATTN_CACHE to another folder, or make room",
    }
    for folder, repair in advice.items():
        existing = folder.absolute()
        while not os.path.lexists(existing):
            existing = existing.parent
        try:
            with tempfile.TemporaryFile(dir=existing) as file:
                file.write(b"natattn")
                file.flush()
        except OSError as error:
            yield Finding(f"{folder}", f"cannot be written to: {error.strerror or error}", "broken", repair)
            continue
        free = shutil.disk_usage(existing).free
        if free < _LITTLE_SPACE:
            state: Literal["note", "broken"] = "broken" if free < _TOO_LITTLE_SPACE else "note"
            yield Finding(f"{folder}", f"only {_size(free)} free", state, repair)
        else:
            yield Finding(f"{folder}", f"writable, {_size(free)} free")


def training() -> Iterator[Finding]:
    """Train both arms for a few steps in a temporary folder with its own cache, and check that their losses fall."""
    from natattn.tracking.metrics_file import FILE_NAME, read_metrics
    from natattn.training.settings import compose_run
    from natattn.training.train import train

    start = time.perf_counter()
    cache = os.environ.get("NATATTN_CACHE")
    with tempfile.TemporaryDirectory(prefix="natattn_doctor_") as scratch:
        os.environ["NATATTN_CACHE"] = os.path.join(scratch, "cache")
        try:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                outcome = train(compose_run(_SMALL_RUN), Path(scratch, "run")).outcome
            metrics = read_metrics(Path(scratch, "run", FILE_NAME))
        finally:
            if cache is None:
                del os.environ["NATATTN_CACHE"]
            else:
                os.environ["NATATTN_CACHE"] = cache
    losses: dict[str, list[float]] = {}
    for name, arm, value in zip(metrics.name, metrics.arm, metrics.value, strict=True):
        if name == "validation/loss":
            losses.setdefault(str(arm), []).append(float(value))
    value = ", ".join(f"{arm} {series[0]:.3f} → {series[-1]:.3f} nats" for arm, series in losses.items())
    value += f" in {time.perf_counter() - start:.1f} s"
    if outcome == "finished" and all(series[-1] < series[0] for series in losses.values()):
        yield Finding("training", value)
    else:
        advice = "run natattn train experiment=quick to see the error"
        yield Finding("training", f"the losses do not fall ({outcome}): {value}", "broken", advice)


def _cause(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"[:200]


def _size(count: float) -> str:
    return f"{count / 2**30:,.1f} GiB"
