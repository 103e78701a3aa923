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
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch.utils._python_dispatch import _disable_current_modes

COMPILERS = ("cc", "gcc", "clang")
FLAGS = ("-O3", "-march=native", "-fopenmp", "-shared", "-fPIC")
PATIENCE = 60.0  # seconds for the compiler
CLOSE = 1e-4  # how near to its definition a function has to come before it is used

Function = Callable[..., int]


def function(source: Path, name: str, **macros: str) -> Function | None:
    """A function of the library made of a C file, or None where none can be made."""
    made = library(source, **macros)
    if made is None:
        return None
    found: Function = getattr(made, name)
    return found


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Whatever a user has switched on around a call: what is done in here comes out as ever, and can be kept."""
    plain = torch.inference_mode(False), torch.no_grad(), torch.autocast("cpu", enabled=False), torch.device("cpu")
    with contextlib.ExitStack() as stack:
        for each in (_disable_current_modes(), *plain):
            stack.enter_context(each)
        yield


def trusted(name: str, off: float) -> bool:
    """Whether a function may be used that is so far off its definition here; a warning tells if not."""
    if off < CLOSE:
        return True
    warnings.warn(
        f"The compiled {name} is {off:.1e} off here and is not used: mixers are slower, and right. "
        "Another compiler may do better: name it in the environment variable CC",
        stacklevel=3,
    )
    return False


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
