"""`save` and `load`: a rewritten model in a folder, which any process can read without the model's own code."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from remixer import mixers
from remixer.distillation.transfer_report import TransferReport
from remixer.export.artifacts.folder import MANIFEST, Folder, Part, reading, write
from remixer.export.artifacts.programs import Tensors, program_of, program_record, with_keys
from remixer.export.artifacts.records import ProgramRecord
from remixer.export.artifacts.tensors import read_tensors, same, write_tensors
from remixer.export.errors import ArtifactError
from remixer.export.typed import TypedError, parsed, plain, read_text, typed
from remixer.export.versions import too_new, versions
from remixer.mixers import Mixer, MixerConfigError, UnknownMixerError
from remixer.passes.extend_positions import ExtendPositions
from remixer.passes.original import Original
from remixer.remixed import Remixed
from remixer.report import Report
from remixer.rewrite.program import Program, shape_of
from remixer.rewrite.sizes import letters_of, written_shape

OWN = "own/"  # in front of the keys of weights that the original doesn't have in common with the rewritten model


def save(remixed: nn.Module, folder: str | os.PathLike[str], *, original: bool = False) -> None:
    """Write a rewritten model to a folder; `load` reads it, and needs none of the original model's code.

    The folder holds the graph, the weights, the example inputs that the model was captured with, and `remixer.json`:
    the mixers, the report, what was learned, versions and checksums. A save that is cut off leaves what was in the
    folder before.

    Args:
        remixed: what `remix` gave.
        folder: made if it doesn't exist; its parent must. An artifact in it is replaced, other files stay.
        original: also write the model that it was made from, with which a loaded model can be transferred and restored.
            Weights that both have in common are written once.

    Raises:
        ArtifactError: the model can't be written, and why; nothing in the folder was changed.

    Examples:
        >>> import tempfile, remixer
        >>> layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
        >>> small = remixer.remix(layer, "toeplitz", torch.zeros(2, 8, 32))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(small, folder)
        ...     loaded = load(folder)
        >>> x = torch.randn(1, 20, 32)
        >>> bool(torch.equal(loaded.eval()(x), small.eval()(x)))
        True
    """
    if not isinstance(remixed, Remixed):
        raise ArtifactError(f"save takes what remixer.remix gave, got {type(remixed).__name__}")
    if remixed.meta.get("unpickled"):
        raise ArtifactError("this model comes from a pickle, which doesn't hold all that an artifact does: remix again")
    made_from: Original | None = remixed.meta.get("original")
    if original and made_from is None:
        raise ArtifactError(
            "this model no longer knows the one it was made from: it was loaded from an artifact without it. "
            "Leave out original=True"
        )
    program = Program.of(remixed)
    try:
        record, tensors, inputs = program_record(program)
        _try(record, tensors, inputs)
        told = {
            "versions": {**versions(), **_packages(program)},
            "model": remixed.report.model,
            "inputs": _inputs(program),
            "mixers": {each.path: plain(each.config) for each in record.modules if each.config is not None},
            "report": plain(remixed.report),
            "transfers": plain(remixed.transfers),
            "extend": None if made_from is None or made_from.extend is None else plain(made_from.extend),
        }
        parts: dict[Part, Any] = {
            "graph": functools.partial(_write_record, record),
            "weights": functools.partial(write_tensors, tensors=tensors),
            "example": functools.partial(write_tensors, tensors=inputs),
        }
        if original and made_from is not None:
            other, own = _original(made_from.swept, record, tensors)
            parts["original"] = functools.partial(_write_record, other)
            parts["original_weights"] = functools.partial(write_tensors, tensors=own)
        write(Path(folder), parts, told)
    except (TypedError, UnknownMixerError, MixerConfigError) as error:
        raise ArtifactError(f"can't save this model: {error}") from error


def load(folder: str | os.PathLike[str], *, device: str | torch.device = "cpu") -> Remixed:
    """The rewritten model that `save` wrote to a folder, in the mode that it was in.

    It is all that it was: it trains, is exported, partitioned and generates; if the original was saved with it, it can
    be transferred and restored too. Its outputs are of the original's class where that is one of transformers and this
    is installed, else a mapping whose values are also attributes.

    Nothing in the folder is run: what it holds can be numbers and names of known operators and mixers only. Mixers of
    third parties are found by their entry points, so install those that you trust.

    Args:
        folder: that `save` wrote.
        device: to load it to.

    Raises:
        ArtifactError: there is no artifact, it is damaged, of another version, asks for a mixer that is not installed,
            or holds what no artifact does.
    """
    found = Folder.of(Path(folder))
    with reading(found.path / MANIFEST):
        if reason := too_new(typed(dict[str, str], found.told.get("versions"), "versions")):
            raise TypedError(reason)
        _check_mixers(found.told)
        report = typed(Report, found.told.get("report"), "report")
        transfers = typed(tuple[TransferReport, ...], found.told.get("transfers"), "transfers")
        extend = typed(ExtendPositions | None, found.told.get("extend"), "extend")  # type: ignore[arg-type]
    inputs, weights = _tensors(found.file("example")), found.file("weights")
    remixed = _program(found, "graph", _tensors(weights), inputs).graph_module
    assert isinstance(remixed, Remixed)
    remixed.meta |= {"report": report, "transfers": transfers}
    if "original" in found.files:
        # Read once more, since what is trained must not change the original.
        own = {f"{OWN}{name}": tensor for name, tensor in _tensors(found.file("original_weights")).items()}
        program = _program(found, "original", _tensors(weights) | own, inputs)
        program.graph_module.to(device)
        remixed.meta["original"] = Original(program, extend)
    return remixed.to(device)


def _write_record(record: ProgramRecord, path: Path) -> None:
    """As JSON, a node a line."""
    whole = plain(record)
    graph = whole["graph"]
    nodes = [
        json.dumps({name: value for name, value in node.items() if value not in (None, [])}) for node in graph["nodes"]
    ]
    graph["nodes"] = []
    text = json.dumps(whole, allow_nan=False).replace('"nodes": []', '"nodes": [\n' + ",\n".join(nodes) + "\n]", 1)
    path.write_text(text + "\n", encoding="utf-8")


def _try(record: ProgramRecord, tensors: Tensors, inputs: Tensors) -> None:
    """What is written has to be what can be read."""
    program_of(typed(ProgramRecord, json.loads(json.dumps(plain(record)))), tensors, inputs, Remixed)


def _original(program: Program, record: ProgramRecord, tensors: Tensors) -> tuple[ProgramRecord, Tensors]:
    """The record of the original, and the weights that the rewritten model doesn't have."""
    other, others, inputs = program_record(program)
    _try(other, others, inputs)
    common = {name: name for name, tensor in others.items() if name in tensors and same(tensor, tensors[name])}
    keys = {name: common.get(name, f"{OWN}{name}") for name in others}
    return with_keys(other, keys), {name: tensor for name, tensor in others.items() if name not in common}


def _tensors(path: Path) -> dict[str, Tensor]:
    with reading(path):
        return read_tensors(path)


def _program(found: Folder, part: Part, tensors: Mapping[str, Tensor], inputs: Mapping[str, Tensor]) -> Program:
    path = found.file(part)
    with reading(path):
        record = typed(ProgramRecord, parsed(read_text(path)))
        return program_of(record, tensors, inputs, Remixed)


def _inputs(program: Program) -> dict[str, Any]:
    """Dtype and shape of each input, for people."""
    letters, found = letters_of(program), {}
    for node in program.graph.find_nodes(op="placeholder"):
        if shape_of(node) is not None:
            value = node.meta["val"]
            found[str(node.target)] = {"dtype": plain(value.dtype), "shape": written_shape(value.shape, letters)}
    return found


def _packages(program: Program) -> dict[str, str]:
    """The packages that mixers of third parties come from, with their versions."""
    found = {}
    homes: Mapping[str, list[str]] = {}
    for module in program.graph_module.modules():
        top = type(module).__module__.partition(".")[0]
        if isinstance(module, Mixer) and top != "remixer":
            homes = homes or packages_distributions()
            for package in homes.get(top, [])[:1]:
                try:
                    found[package] = version(package)
                except PackageNotFoundError:
                    continue
    return found


def _check_mixers(told: Mapping[str, Any]) -> None:
    """Whether all mixers are installed; if not, what to do."""
    configs = typed(dict[str, Any], told.get("mixers"), "mixers")
    for path, config in configs.items():
        name = config.get("mixer") if isinstance(config, dict) else None
        try:
            mixers.get(str(name))
        except UnknownMixerError as error:
            others = ", ".join(f"{package} {number}" for package, number in told["versions"].items())
            raise TypedError(
                f"{path} is a mixer that is not installed here: {error}. It was made with {others}: install the "
                "package that has it, or import the module that registers it first"
            ) from error
