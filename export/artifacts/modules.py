"""The modules of a program as records, and back: mixers by their name, spec and config, and dropouts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from remixer import mixers
from remixer.export.artifacts.graphs import PATH, Tables, graph_of, written
from remixer.export.artifacts.recorded import Recorder
from remixer.export.artifacts.records import ModuleRecord, TensorRecord
from remixer.export.typed import TypedError, plain, typed
from remixer.mixers import AttentionSpec, Mixer, MixerConfig
from remixer.rewrite.dropout import Dropout, DropoutProbability
from remixer.rewrite.modules import weights


def written_modules(module: fx.GraphModule, tables: Tables) -> tuple[ModuleRecord, ...]:
    """All modules of a program that are more than a place for weights.

    Raises:
        TypedError: one of them can't be made again from what is written.
    """
    records: list[ModuleRecord] = []
    inner: tuple[str, ...] = ()
    for path, each in module.named_modules(remove_duplicate=False):
        if path and not path.startswith(inner):
            if each._forward_hooks or each._forward_pre_hooks:
                raise TypedError(f"{path} has hooks, which no file can hold: remove them before")
            record = _written(path, each, tables)
            if record is not None:
                records.append(record)
                inner = (*inner, f"{path}.")
    return tuple(records)


def written_tensors(module: nn.Module) -> tuple[tuple[TensorRecord, ...], dict[str, Tensor]]:
    """All weights of a module: what is written of each, and the tensors by their keys.

    Raises:
        TypedError: one is not an ordinary tensor.
    """
    transient = {
        f"{path}.{name}" if path else name
        for path, each in module.named_modules()
        for name in each._non_persistent_buffers_set
    }
    keys: dict[int, str] = {}
    records, tensors = [], {}
    for name, tensor in weights(module).items():
        if tensor.layout is not torch.strided or tensor.is_meta or type(tensor) not in (Tensor, nn.Parameter):
            told = "is on the meta device" if tensor.is_meta else f"is a {type(tensor).__name__} of {tensor.layout}"
            raise TypedError(f"the weight {name} {told}: only ordinary tensors can be written")
        key = keys.setdefault(id(tensor), name)
        tensors[key] = tensor
        kind = "parameter" if isinstance(tensor, nn.Parameter) else "transient" if name in transient else "buffer"
        records.append(TensorRecord(name, key, kind, tensor.requires_grad))  # type: ignore[arg-type]
    return tuple(records), tensors


def root_of(
    modules: tuple[ModuleRecord, ...],
    records: tuple[TensorRecord, ...],
    tensors: Mapping[str, Tensor],
    recorder: Recorder,
) -> nn.Module:
    """The tree of modules and weights that a graph stands on.

    Raises:
        TypedError: a record is none, or a weight is missing or of another shape.
        UnknownMixerError: a mixer is not installed.
        MixerConfigError: a config has a value that no attention could take.
    """
    root = nn.Module()
    built: dict[str, nn.Module] = {}
    for record in modules:
        owner, name = _place(root, record.path)
        if hasattr(owner, name):
            raise TypedError(f"two modules stand at {record.path!r:.80}")
        built[record.path] = _made(record, recorder)
        owner.add_module(name, built[record.path])
    known: dict[str, Tensor] = {}
    for weight in records:
        if weight.key not in tensors:
            raise TypedError(f"the weight {weight.name!r:.80} is missing")
        path = weight.name.rpartition(".")[0]
        inside = next((each for each in built if f"{path}.".startswith(f"{each}.")), None)
        if weight.key not in known:
            tensor = tensors[weight.key]
            if weight.grad and not (tensor.is_floating_point() or tensor.is_complex()):
                raise TypedError(f"the weight {weight.name!r:.80} can't be trained: its dtype is {tensor.dtype}")
            known[weight.key] = nn.Parameter(tensor, weight.grad) if weight.kind == "parameter" else tensor
        _hang(root, weight, known[weight.key], fixed=inside is not None and isinstance(built[inside], Mixer))
    lost = [name for name, tensor in weights(root).items() if tensor.is_meta]
    if lost:
        raise TypedError(f"the weight {lost[0]} of a mixer is missing")
    return root


def _written(path: str, module: nn.Module, tables: Tables) -> ModuleRecord | None:
    if isinstance(module, Mixer):
        record = ModuleRecord(path, "mixer", spec=module.spec, config=module.config)
        if mixers.get(module.config.name) is not type(module):
            raise TypedError(f"{path} is no mixer that is registered as {module.config.name!r}")
        for kind, value in ((AttentionSpec, module.spec), (MixerConfig, module.config)):
            if typed(kind, plain(value)) != value:
                raise TypedError(f"what JSON holds of {value} at {path} is something else")
        return record
    if type(module) is Dropout:
        return ModuleRecord(path, "dropout", p=module.p, drops=module.kind)  # type: ignore[arg-type]
    if type(module) is DropoutProbability:
        return ModuleRecord(path, "probability", p=module.p)
    if isinstance(module, fx.GraphModule):
        return ModuleRecord(path, "graph", graph=written(module.graph, tables))
    if type(module) in (nn.Module, nn.ModuleList, nn.ModuleDict, nn.Sequential):
        return None
    raise TypedError(f"the {type(module).__name__} at {path} can't be written: a graph calls mixers and dropouts only")


def _made(record: ModuleRecord, recorder: Recorder) -> nn.Module:
    if record.kind == "mixer":
        if record.spec is None or record.config is None:
            raise TypedError(f"the mixer at {record.path!r:.80} has no spec or no config")
        return empty_mixer(record.spec, record.config)
    if record.kind == "graph":
        if record.graph is None:
            raise TypedError(f"the graph at {record.path!r:.80} is missing")
        return fx.GraphModule(nn.Module(), graph_of(record.graph, recorder))
    if not 0.0 <= record.p <= 1.0:
        raise TypedError(f"the dropout at {record.path!r:.80} has the probability {record.p}")
    return Dropout(record.p, record.drops) if record.kind == "dropout" else DropoutProbability(record.p)


def empty_mixer(spec: AttentionSpec, config: MixerConfig) -> Mixer:
    """A mixer whose weights have no memory yet, if it can be made so: they come from a file.

    Raises:
        TypedError: no attention of this spec could have been replaced by it.
    """
    kind = mixers.mixer_of(config)
    reason = kind.supports(spec, config)
    if reason is not None:
        raise TypedError(f"{config.name!r} can't take the place of an attention of {spec}: {reason}")
    try:
        with torch.device("meta"):
            mixer = kind.from_attention(spec, config)
    except RuntimeError:  # it computes with numbers, which a weight without memory has none of
        return kind.from_attention(spec, config)
    held = (value for each in mixer.modules() for value in vars(each).values())
    return kind.from_attention(spec, config) if any(isinstance(each, Tensor) for each in held) else mixer


def _place(root: nn.Module, path: str) -> tuple[nn.Module, str]:
    """The module that something hangs on, made as far as it is missing, and the name it has there."""
    if not PATH.fullmatch(path):
        raise TypedError(f"expected the path of a module or a weight, got {path!r:.80}")
    *owners, name = path.split(".")
    owner = root
    for each in owners:
        if each not in owner._modules:
            if hasattr(owner, each):
                raise TypedError(f"{path!r:.80} leads through something that is no module")
            owner.add_module(each, nn.Module())
        inner: Any = owner._modules[each]
        owner = inner
    return owner, name


def _hang(root: nn.Module, record: TensorRecord, tensor: Tensor, *, fixed: bool) -> None:
    """Give a weight its place, which is there already in a mixer."""
    owner, name = _place(root, record.name)
    old = owner._parameters.get(name, owner._buffers.get(name))
    if fixed:
        if old is None or isinstance(old, nn.Parameter) is not (record.kind == "parameter"):
            raise TypedError(f"a mixer has no weight {record.name!r:.80}")
        if isinstance(old, nn.Parameter) and old.shape != tensor.shape:
            shapes = f"{tuple(tensor.shape)}, the mixer's is {tuple(old.shape)}"
            raise TypedError(f"the weight {record.name!r:.80} has the shape {shapes}")
    elif hasattr(owner, name):
        raise TypedError(f"two weights stand at {record.name!r:.80}")
    if isinstance(tensor, nn.Parameter):
        owner._parameters[name] = tensor
    elif record.kind == "parameter":
        raise TypedError(f"{record.name!r:.80} is a parameter here and a buffer elsewhere")
    elif fixed:
        owner._buffers[name] = tensor
    else:
        owner.register_buffer(name, tensor, persistent=record.kind == "buffer")
