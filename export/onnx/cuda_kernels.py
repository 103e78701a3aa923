"""Which kernels onnxruntime's CUDA provider has: those of the installed build, or of one that was asked once."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

from remixer.export.onnx.runtime import installed_runtimes

TABLE = Path(__file__).with_name("cuda_kernels.json")
PATIENCE = 120.0  # seconds that the installed build may take to list its kernels

# It runs in a process of its own: the list takes down the process in builds with TensorRT where TensorRT is missing.
_LIST = """
import json
from onnxruntime.capi import onnxruntime_pybind11_state as state
print(json.dumps([
    [each.domain, each.op_name, *each.version_range, dict(each.type_constraints)]
    for each in state.get_all_opkernel_def() if each.provider == "CUDAExecutionProvider"
]))
"""


class Kernel(NamedTuple):
    """One kernel of an operator.

    Attributes:
        first: version of the operator from which on it is used.
        last: the last one, or None if there is none: then it is used for an operator of just the version `first`.
        types: dtypes that it takes, such as "float16", by type parameter or by name of an input.
    """

    first: int
    last: int | None
    types: dict[str, frozenset[str]]

    def runs(self, version: int) -> bool:
        """Whether it is for an operator that came in this version, as onnxruntime decides."""
        return version == self.first or (self.last is not None and self.first <= version <= self.last)


class CudaKernels(NamedTuple):
    """What a build of onnxruntime has for CUDA.

    Attributes:
        source: which build, and how that is known.
        kernels: by operator, "MatMul" or "com.microsoft.BiasGelu".
        host_inputs: by operator, the places of inputs that its kernel reads on the CPU, such as a shape.
    """

    source: str
    kernels: dict[str, list[Kernel]]
    host_inputs: dict[str, frozenset[int]]


@functools.cache
def cuda_kernels() -> CudaKernels:
    """The kernels of the installed onnxruntime, or those of remixer's table where it lists none."""
    table = json.loads(TABLE.read_text(encoding="utf-8"))
    host = {name: frozenset(places) for name, places in table["host_inputs"].items()}
    installed = _installed()
    listed = _listed() if any(name.startswith("onnxruntime-gpu") for name in installed_runtimes()) else []
    if listed:
        found: dict[str, list[Kernel]] = {}
        for domain, name, first, last, types in listed:
            known = {each: frozenset(_short(one) for one in some) for each, some in types.items()}
            kernel = Kernel(first, last if last < 2**31 - 1 else None, known)
            found.setdefault(operator(domain, name), []).append(kernel)
        return CudaKernels(f"the installed {installed}", found, host)
    kernels = {
        name: [
            Kernel(first, last, {each: frozenset(some.split()) for each, some in types.items()})
            for first, last, types in rows
        ]
        for name, rows in table["kernels"].items()
    }
    return CudaKernels(f"{table['build']}, from a table, since the installed {installed} lists none", kernels, host)


def operator(domain: str, name: str) -> str:
    """An operator's name with its domain, if that is not ONNX's own."""
    return name if domain in ("", "ai.onnx") else f"{domain}.{name}"


def _installed() -> str:
    import onnxruntime as ort

    return f"{' and '.join(installed_runtimes())} {ort.__version__}"


def _listed() -> list[Any]:
    """What the installed build lists; nothing if it can't, for want of a library."""
    try:
        done = subprocess.run([sys.executable, "-c", _LIST], capture_output=True, text=True, timeout=PATIENCE)
        return list(json.loads(done.stdout)) if done.returncode == 0 else []
    except (subprocess.TimeoutExpired, json.JSONDecodeError):
        return []


def _short(dtype: str) -> str:
    """A dtype such as "tensor(float16)" as "float16"; others as they are."""
    return dtype[len("tensor(") : -1] if dtype.startswith("tensor(") else dtype
