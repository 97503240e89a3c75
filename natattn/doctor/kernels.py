"""Which kernels compute: attention's backends, bfloat16, deterministic algorithms, torch.compile."""

import contextlib
import io
import os
import shutil
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from natattn.doctor.findings import Finding, cause

_COMPILERS = ("g++", "c++", "clang++")


def kernels() -> Iterator[Finding]:
    """Attention and arithmetic on the device that a run would take."""
    import torch
    from torch.nn.attention import SDPBackend

    device = "cuda" if torch.cuda.is_available() else "cpu"
    backends = {"flash": SDPBackend.FLASH_ATTENTION, "efficient": SDPBackend.EFFICIENT_ATTENTION}
    backends |= {"cudnn": SDPBackend.CUDNN_ATTENTION, "math": SDPBackend.MATH}
    working = [name for name, backend in backends.items() if _failure(partial(_attend, device, backend)) is None]
    if working:
        yield Finding("attention kernels", f"{', '.join(working)} on {device}")
    else:
        yield Finding(
            "attention kernels",
            f"none works on {device}: {_failure(partial(_attend, device, SDPBackend.MATH))}",
            "broken",
            "install torch again: no model can be trained",
        )
    yield _bfloat16(device)


def _bfloat16(device: str) -> Finding:
    import torch

    failure = _failure(partial(_multiply_in_bfloat16, device))
    if failure is not None:
        return Finding("bfloat16", f"does not work on {device}: {failure}", "broken", "use precision=fp32, no Muon")
    if device == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    if native:
        return Finding("bfloat16", f"works on {device}")
    return Finding("bfloat16", f"works on {device}, emulated", "note", "precision=fp32 is quicker here than bf16")


def compiling() -> Iterator[Finding]:
    """Whether train.compile=true would work, by compiling something small."""
    import torch

    compiler = os.environ.get("CXX") or next((name for name in _COMPILERS if shutil.which(name)), None)
    on_gpu = torch.cuda.is_available()
    if not on_gpu and (compiler is None or shutil.which(compiler) is None):
        missing = f"the compiler {compiler} of $CXX is not there" if compiler else "there is no C++ compiler"
        yield Finding("torch.compile", missing, "note", "train.compile=true needs one: install g++ or clang++")
        return
    started = time.perf_counter()
    failure = _failure(partial(_compile, "cuda" if on_gpu else "cpu"))
    if failure is not None:
        advice = "train.compile=true will not work; leave it false, or install torch and the compiler again"
        yield Finding("torch.compile", f"fails: {failure}", "note", advice)
        return
    with_compiler = "" if on_gpu else f" with {compiler}"
    yield Finding("torch.compile", f"works{with_compiler}, {time.perf_counter() - started:.1f} s for one function")


def _failure(action: Callable[[], Any]) -> str | None:
    """Why something does not work, in one line; None where it does. What it prints is of no interest."""
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            action()
        except Exception as error:
            return cause(error)
    return None


def _attend(device: str, backend: Any) -> None:
    """A causal attention, forward and backward, in the format that the kernel is made for."""
    import torch
    from torch.nn.attention import sdpa_kernel

    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    query, key, value = (torch.randn(1, 2, 64, 32, device=device, dtype=dtype, requires_grad=True) for _ in range(3))
    with sdpa_kernel([backend]):
        output = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        output.sum().backward()  # type: ignore[no-untyped-call]
    if not all(bool(each.grad.isfinite().all()) for each in (query, key, value) if each.grad is not None):
        raise ArithmeticError("its gradient is not finite")


def _multiply_in_bfloat16(device: str) -> None:
    import torch

    weight = torch.randn(64, 64, device=device, requires_grad=True)
    with torch.autocast(device, dtype=torch.bfloat16):
        product = weight @ weight
    product.float().sum().backward()  # type: ignore[no-untyped-call]
    if product.dtype != torch.bfloat16 or not bool(product.isfinite().all()):
        raise ArithmeticError("autocast does not multiply in it")


def _compile(device: str) -> None:
    import torch

    def function(values: torch.Tensor) -> torch.Tensor:
        return (values.sin() * values).sum()

    values = torch.randn(1024, device=device)
    compiled = torch.compile(function)(values)
    if not torch.allclose(compiled, function(values), rtol=1e-4, atol=1e-4):
        raise ArithmeticError("the compiled function computes something else")
