"""C code of mixers, compiled when it is first needed by the compiler that the system has, for the CPU that it runs on.

A wheel can't know the CPU, and what matters most here is how wide its vectors are. What was compiled is kept in the
user's cache folder, under a name made of all that it depends on. Without a compiler, or with one that lacks OpenMP,
there is no library, and mixers go by torch's operators, which is slower.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import shlex
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from remixer.mixers.precision import at_least_float32

COMPILERS = ("cc", "gcc", "clang")
FLAGS = ("-O3", "-march=native", "-fopenmp", "-shared", "-fPIC")
PATIENCE = 60.0  # seconds for the compiler
CLOSE = 1e-4  # how near to its definition a function has to come before it is used

# What the code reckons with.
NUMBERS = {torch.float32: "float", torch.bfloat16: "float", torch.float64: "double"}

Pointer, Number, Strides = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64 * 3


class Compiled:
    """A function of a C file for each kind of number, held against its definition before it is used.

    Args:
        source: the file, which is compiled with REAL = float or double.
        name: of the function; it takes a pointer to a structure, and returns 0, or 1 if there is no memory.
        what: it computes, for messages.
        far_off: by how much it misses its definition in float32 or float64.
    """

    def __init__(self, source: Path, name: str, what: str, far_off: Callable[[torch.dtype], float]) -> None:
        self.source, self.name, self.what, self.far_off = source, name, what, far_off
        self._known: dict[str, bool] = {}

    def there(self, dtype: torch.dtype) -> bool:
        """Whether it can be compiled here."""
        return library(self.source, REAL=NUMBERS[dtype]) is not None

    def proven(self, dtype: torch.dtype) -> bool:
        """Whether it is there, and gives what it should; a warning tells if it doesn't."""
        number = NUMBERS[dtype]
        if number not in self._known:
            self._known[number] = self.there(dtype) and self._trusted(at_least_float32(dtype))
        return self._known[number]

    def forget(self) -> None:
        """Have it proven anew."""
        self._known.clear()

    def __call__(self, dtype: torch.dtype, call: ctypes.Structure) -> None:
        """Run it for operands of a dtype.

        Raises:
            MemoryError: there is none left.
        """
        made = library(self.source, REAL=NUMBERS[dtype])
        assert made is not None
        if getattr(made, self.name)(ctypes.byref(call)):
            raise MemoryError(f"no memory for the compiled {self.what}")

    def _trusted(self, dtype: torch.dtype) -> bool:
        with undisturbed():
            off = self.far_off(dtype)
        if off < CLOSE:
            return True
        warnings.warn(
            f"The compiled {self.what} is {off:.1e} off here and is not used: mixers are slower, and right. "
            "Another compiler may do better: name it in the environment variable CC",
            stacklevel=3,
        )
        return False


def worst(found: Iterable[Tensor], expected: Iterable[Tensor]) -> float:
    """The largest difference, infinite where there is no number."""
    return max(
        float((one - other).abs().max().nan_to_num(torch.inf)) for one, other in zip(found, expected, strict=True)
    )


def by_entries(tensor: Tensor) -> Tensor:
    """The code takes any strides but that of entries, which has to be 1."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def pointer(tensor: Tensor | None) -> int | None:
    """Where it lies."""
    return None if tensor is None else tensor.data_ptr()


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Whatever a user has switched on around a call: what is done in here comes out as ever, and can be kept."""
    plain = torch.inference_mode(False), torch.no_grad(), torch.autocast("cpu", enabled=False), torch.device("cpu")
    with contextlib.ExitStack() as stack:
        for each in (_disable_current_modes(), *plain):
            stack.enter_context(each)
        yield


@functools.cache
def library(source: Path, **macros: str) -> ctypes.CDLL | None:
    """The library made of a C file, or None where none can be made.

    Args:
        source: the file.
        macros: defined while it is compiled.
    """
    compiler = _compiler()
    if compiler is None:
        return None
    command = [*compiler, *FLAGS, *(f"-D{name}={value}" for name, value in macros.items())]
    try:
        target = _cache() / f"{source.stem}-{_fingerprint(command, source)}.so"
        if not target.exists():
            _compile(command, source, target)
        return ctypes.CDLL(str(target))
    except (OSError, subprocess.SubprocessError):
        return None


def _compiler() -> list[str] | None:
    """The compiler: what the environment variable CC says, or the first that is found."""
    if os.name != "posix":
        return None
    named = shlex.split(os.environ.get("CC", ""))
    for program, *options in [named] if named else [[name] for name in COMPILERS]:
        found = shutil.which(program)
        if found is not None:
            return [found, *options]
    return None


def _cache() -> Path:
    """A folder that nobody else may write to, made if it isn't there; else one that lasts as long as the process."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    folder = Path(home) / "remixer"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        known = folder.stat()
        if known.st_uid == os.getuid() and not known.st_mode & 0o022 and os.access(folder, os.W_OK):
            return folder
    except OSError:
        pass
    return Path(_passing_folder().name)


@functools.cache
def _passing_folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="remixer-")


def _fingerprint(command: list[str], source: Path) -> str:
    """Of the code, what it includes, how it is compiled, and what the compiler takes this CPU for."""
    known = _run([*command, "-dM", "-E", "-x", "c", os.devnull])
    parts = ("\0".join(command).encode(), known, _run([*command, "-E", "-P", str(source)]))
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:24]


def _compile(command: list[str], source: Path, target: Path) -> None:
    """Make the library beside its place, and move it there when it is whole: others may be at the same."""
    handle, made = tempfile.mkstemp(suffix=".so", dir=target.parent)
    os.close(handle)
    try:
        _run([*command, str(source), "-o", made, "-lm"])
        os.replace(made, target)
    except BaseException:
        Path(made).unlink(missing_ok=True)
        raise


def _run(command: list[str]) -> bytes:
    return subprocess.run(command, check=True, capture_output=True, timeout=PATIENCE).stdout
