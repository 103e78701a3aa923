"""C code is compiled when it is needed, once for each CPU and each code, and where it can't be, nothing breaks."""

import ctypes
import os
import subprocess
import sys

import pytest

from remixer.mixers import c_library
from remixer.mixers.c_library import library

TWICE = "double twice(double x) { return FACTOR * x; }"
needs_compiler = pytest.mark.skipif(c_library._compiler() is None, reason="no C compiler")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    library.cache_clear()
    yield
    library.cache_clear()


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "twice.c"
    path.write_text(TWICE)
    return path


def kept(tmp_path):
    return sorted((tmp_path / "cache" / "remixer").glob("*"))


def result(made, x):
    made.twice.restype, made.twice.argtypes = ctypes.c_double, [ctypes.c_double]
    return made.twice(x)


@needs_compiler
def test_compiled_once_for_each_code_and_macro(source, tmp_path):
    assert result(library(source, FACTOR="2"), 4.0) == 8.0
    (first,) = kept(tmp_path)
    stamp = first.stat().st_mtime_ns
    library.cache_clear()  # as in another process
    assert result(library(source, FACTOR="2"), 4.0) == 8.0
    assert kept(tmp_path) == [first]
    assert first.stat().st_mtime_ns == stamp
    assert result(library(source, FACTOR="3"), 4.0) == 12.0
    source.write_text(TWICE.replace("* x", "+ x"))
    library.cache_clear()
    assert result(library(source, FACTOR="3"), 4.0) == 7.0
    assert len(kept(tmp_path)) == 3


@needs_compiler
def test_only_the_user_may_write_where_code_is_kept(source, tmp_path):
    library(source, FACTOR="2")
    assert (tmp_path / "cache" / "remixer").stat().st_mode & 0o077 == 0


@needs_compiler
def test_a_cache_that_cannot_be_written_is_done_without(source, tmp_path):
    (tmp_path / "cache").write_text("not a folder")
    assert result(library(source, FACTOR="2"), 4.0) == 8.0


@needs_compiler
def test_code_that_others_may_have_written_is_not_loaded(source, tmp_path):
    folder = tmp_path / "cache" / "remixer"
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    assert result(library(source, FACTOR="2"), 4.0) == 8.0
    assert kept(tmp_path) == []


@needs_compiler
def test_a_compiler_with_options(source, monkeypatch):
    monkeypatch.setenv("CC", f"{c_library._compiler()[0]} -DFACTOR=5")
    assert result(library(source), 4.0) == 20.0


@needs_compiler
def test_code_that_does_not_compile_is_no_library_and_leaves_nothing(source, tmp_path):
    source.write_text("#error not on this CPU")
    assert library(source, FACTOR="2") is None
    assert kept(tmp_path) == []


@pytest.mark.parametrize("compiler", ["no-such-compiler", "false"])
def test_without_a_compiler_there_is_no_library(source, monkeypatch, compiler):
    monkeypatch.setenv("CC", compiler)
    assert library(source, FACTOR="2") is None


@needs_compiler
def test_processes_that_compile_at_the_same_time(source, tmp_path):
    code = (
        "from pathlib import Path; from remixer.mixers.c_library import library; "
        f"library(Path({str(source)!r}), FACTOR='2').twice"
    )
    running = [subprocess.Popen([sys.executable, "-c", code], env=os.environ) for _ in range(2)]
    assert [process.wait() for process in running] == [0, 0]
    assert len(kept(tmp_path)) == 1
