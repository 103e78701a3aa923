"""Whether an ONNX file gives what torch gives, on inputs of sizes that it was not exported with."""

from __future__ import annotations

import contextlib
import operator
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram

from remixer.export.errors import ExportError, OnnxMismatchError
from remixer.export.examples import Trial, trials
from remixer.export.onnx.compare import InFile, largest_difference, set_aside
from remixer.export.onnx.in_float64 import outputs_in_float64
from remixer.export.onnx.mixer_functions import MixerFunction, is_call
from remixer.export.onnx.names import input_names
from remixer.export.onnx.runtime import Provider, Session
from remixer.rewrite.agreement import NotRunError, run
from remixer.rewrite.inputs import tensors_in
from remixer.rewrite.match import module_path
from remixer.rewrite.program import Program

TOLERANCE = 1e-4  # of the largest number that torch gives, 1 at least
RANDOM = tuple(f"aten.{name}" for name in ("rand", "normal", "bernoulli", "multinomial"))
CHUNK = 64  # how many intermediate results are asked for at once


class Proof(NamedTuple):
    """What was tried, and the largest difference, relative to TOLERANCE's scale."""

    trials: int
    error: float


def verify(
    program: Program,
    path: Path,
    provider: Provider,
    source: ExportedProgram,
    functions: Sequence[MixerFunction],
    tolerance: float,
) -> Proof:
    """Run a file beside torch on all trials.

    Where its outputs are too far from torch's in float32, it is held against torch's in float64.

    Args:
        program: that it was made of.
        path: the file.
        provider: to run it on.
        source: what torch.export gave, for the place of a difference.
        functions: that it calls.
        tolerance: see `to_onnx`.

    Raises:
        OnnxMismatchError: they differ; it says on which inputs, and which node does first.
        ExportError: onnxruntime refuses the file, or torch runs none of the trials.
    """
    worst = 0.0
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        tried = list(_in_torch(program, Path(folder)))
        if not tried:
            raise ExportError("torch itself runs on none of the inputs that the file was to be tried on")
        session = Session(path, provider)
        for trial, expected in tried:
            feeds = feeds_of(trial.call)
            try:
                outputs = session(feeds)
            except Exception as error:  # onnxruntime has an exception class per status
                raise OnnxMismatchError(f"onnxruntime fails on {trial.name}: {str(error).splitlines()[0]}") from error
            found = _differences(outputs, expected, trial)
            if not max(found, default=0.0) <= tolerance:
                found = _in_float64(program, outputs, trial) or found
            for name, distance in zip(session.outputs, found, strict=True):
                if not distance <= tolerance:
                    place = first_difference(_Recorder(source, functions), path, provider, feeds, trial, tolerance)
                    raise OnnxMismatchError(
                        f"the ONNX file differs from torch by {distance:.2g} in {name}, allowed {tolerance:.2g}, on "
                        f"{trial.name}. {place}"
                    )
                worst = max(worst, distance)
            del outputs  # before the next ones come
    return Proof(len(tried), worst)


def _in_torch(program: Program, folder: Path) -> Iterator[tuple[Trial, list[Tensor | InFile]]]:
    """What torch gives on each trial that it takes; all of it comes before onnxruntime reads the weights once more."""
    for trial in trials(program):
        with contextlib.suppress(NotRunError):  # beyond what the model takes, such as a table of positions
            yield trial, set_aside(tensors_in(run(program.graph_module, trial.call)), folder)


def _differences(outputs: Sequence[Tensor], expected: Sequence[Tensor | InFile], trial: Trial) -> list[float]:
    return [largest_difference(got, want, trial.exist) for got, want in zip(outputs, expected, strict=True)]


def _in_float64(program: Program, outputs: Sequence[Tensor], trial: Trial) -> list[float]:
    """How far outputs are from what torch gives in float64; nothing where it doesn't run in that."""
    try:
        exact = outputs_in_float64(program.graph_module, trial.call)
    except NotRunError:
        return []
    return _differences(outputs, exact, trial)


def feeds_of(call: Any) -> dict[str, Tensor]:
    """The tensors of a call by the names of the graph's inputs."""
    return dict(zip(input_names(call), tensors_in(call), strict=True))


def first_difference(
    recorder: _Recorder, path: Path, provider: Provider, feeds: Mapping[str, Tensor], trial: Trial, tolerance: float
) -> str:
    """A sentence on the first node of the exported graph whose value onnxruntime gives otherwise."""
    for node in recorder.source.graph.nodes:
        if str(node.target).startswith(RANDOM):
            return f"It draws random numbers, {node.target} at {_place(node)}, and onnxruntime draws others"
    args, kwargs = trial.call
    with torch.no_grad():
        recorder.run(*args, *kwargs.values())
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        names = _with_all_outputs(path, Path(folder) / "all.onnx", set(recorder.values))
        session = Session(Path(folder) / "all.onnx", provider)
        for start in range(0, len(names), CHUNK):
            some = names[start : start + CHUNK]
            for name, got in zip(some, session(feeds, some), strict=True):
                if not largest_difference(got, recorder.values[name], trial.exist) <= tolerance:
                    return f"The first node that differs is {name}, {recorder.places[name]}"
    return "No single node of the graph differs by as much"


class _Recorder(fx.Interpreter):
    """Runs a graph and keeps all tensors that its operators give."""

    def __init__(self, source: ExportedProgram, functions: Sequence[MixerFunction]) -> None:
        super().__init__(source.module())
        self.source = source
        self.functions = {function.name: function for function in functions}
        self.values: dict[str, Tensor] = {}
        self.places: dict[str, str] = {}

    def run_node(self, n: fx.Node) -> Any:
        if "_guards_fn" in str(n.target) or "assert" in str(n.target):
            return None  # the file holds beyond what torch.export vouches for
        if is_call(n):
            tensors, name = self.fetch_args_kwargs_from_env(n)[0][:2]
            return self.functions[name].run(tensors)
        value = super().run_node(n)
        if n.op == "call_function" and isinstance(value, Tensor):
            self.values[n.name] = value
            self.places[n.name] = f"{self._told(n)} at {_place(n)}"
        return value

    def _told(self, node: fx.Node) -> str:
        """What a node does: an operator, or a mixer."""
        call = node.args[0] if node.target is operator.getitem else None
        if isinstance(call, fx.Node) and is_call(call):
            return f"of {type(self.functions[str(call.args[1])].module).__name__}"
        return str(node.target)


def _place(node: fx.Node) -> str:
    """The module that a node is of."""
    return module_path(node) or "the top"


def _with_all_outputs(path: Path, copy: Path, wanted: set[str]) -> list[str]:
    """A copy of a graph that gives these values too; the names of those that it has, in its order."""
    import onnx_ir as ir

    model = ir.load(path)
    names = []
    known = {value.name for value in model.graph.outputs}
    for node in model.graph:
        for value in node.outputs:
            if value.name in wanted and value.name not in known:
                model.graph.outputs.append(value)
                names.append(value.name)
    ir.save(model, copy)
    return names
