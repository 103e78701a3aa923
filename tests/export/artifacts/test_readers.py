"""Every reader of files takes whatever bytes there are: its own errors come out, and nothing is written."""

import contextlib
import copy
import json
import random
import shutil

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from strangers import Small, content_of, copied, example, made, with_content

import remixer
from remixer import ArtifactError, Distributed, LongShort, Plan, PlanError, TransferError
from remixer.distillation.checkpoint import Checkpoint, Reached
from remixer.export import ExportError, OnnxDecoder, PartitionError, partition
from remixer.export.artifacts.folder import reading
from remixer.export.artifacts.tensors import read_tensors
from remixer.export.onnx.manifest import DecoderManifest
from remixer.export.partitions.letters import value_of
from remixer.export.partitions.plan import PartitionPlan
from remixer.export.partitions.stored import read_graph
from remixer.export.typed import TypedError, plain
from remixer.planning.plan import FrontPoint, SitePlan

PARTS = ("graph", "weights", "example", "original", "original_weights")


class Reader:
    """A file in a folder, and what reads it."""

    def __init__(self, folder, data, write, read, errors):
        self.folder, self.data, self.write, self.read, self.errors = folder, data, write, read, errors

    def try_on(self, data):
        """Read the folder with other content in the file."""
        kept = {file: file.read_bytes() for file in self.folder.rglob("*") if file.is_file()}
        outside = sorted(self.folder.parent.iterdir())
        try:
            self.write(data)
            now = {file: file.stat().st_mtime_ns for file in self.folder.rglob("*")}
            with contextlib.suppress(*self.errors):
                self.read()
            assert {file: file.stat().st_mtime_ns for file in self.folder.rglob("*")} == now
            assert sorted(self.folder.parent.iterdir()) == outside
        finally:
            shutil.rmtree(self.folder)
            for file, content in kept.items():
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(content)


@pytest.fixture(scope="module")
def readers(tmp_path_factory):
    """By name."""
    return dict(_readers(tmp_path_factory.mktemp("readers")))


def _readers(root):
    model = made()
    (root / "saved").mkdir()
    remixer.save(model, root / "saved" / "a", original=True)
    for part in PARTS:
        folder = copied(root / "saved" / "a", root / part / "a")
        yield (
            part,
            Reader(
                folder,
                content_of(folder, part),
                lambda data, folder=folder, part=part: with_content(folder, part, data),
                lambda folder=folder: remixer.load(folder),
                (ArtifactError,),
            ),
        )
    folder = copied(root / "saved" / "a", root / "manifest" / "a")
    yield "manifest", _file(folder / "remixer.json", lambda file: remixer.load(file.parent), ArtifactError)

    folder = root / "plan" / "a"
    folder.mkdir(parents=True)
    site = SitePlan("layer", ((0,), (1,)), (LongShort(window=4), None), {"long_short": 0.1})
    Plan((site,), (FrontPoint(0.5, 0.1, 2, chosen=True),), 64, "flops", "logits").save(folder / "plan.json")
    yield "plan", _file(folder / "plan.json", Plan.load, PlanError)

    folder = root / "checkpoint" / "a"
    folder.mkdir(parents=True)
    kept = Checkpoint(folder / "reached.safetensors", {"seed": 1})
    kept.stages["attention"] = Reached(
        "attention", 3, 1.0, False, {"a": [1.0]}, [(1, {"a": 2.0})], {"x": torch.ones(2)}
    )
    kept.write()
    yield "checkpoint", _file(kept.path, lambda file: Checkpoint(file, {"seed": 1}), TransferError)

    spread = remixer.remix(Small(), Distributed(), example())
    folder = root / "partition" / "a"
    folder.parent.mkdir()
    partition(spread, 2, scheme="all_gather").save(folder)
    yield "partition", _file(folder / "plan.json", lambda file: PartitionPlan.read(file.parent), PartitionError)
    stage = copied(folder, root / "stage" / "a")

    graph, weights = next(stage.glob("graph.*.json")), next(stage.glob("weights.*.safetensors"))

    def read_stage(file):
        with reading(file):
            read_graph(graph, read_tensors(weights))

    for name, file in (("graph", graph), ("weights", weights)):
        yield f"partition's {name}", _file(file, read_stage, ArtifactError)

    folder = root / "decoder" / "a"
    folder.mkdir(parents=True)
    told = {"inputs": {}, "outputs": {}, "opset": {"": 18}, "ir_version": 10, "provider": "cpu", "mixers": {}}
    told |= {"trials": 3, "error": 0.0, "tolerance": 0.1, "nodes": {}, "versions": {}, "seconds": {}}
    manifest = DecoderManifest(**told, length=8, state={})
    (folder / "decoder.json").write_text(json.dumps(plain(manifest)))
    for name in ("prefill.onnx", "step.onnx"):
        (folder / name).write_bytes(b"no graph")
    yield "decoder", _file(folder / "decoder.json", lambda file: OnnxDecoder(file.parent), ExportError)


def _file(file, read, *errors):
    return Reader(file.parent, file.read_bytes(), file.write_bytes, lambda: read(file), errors)


NAMES = (
    *PARTS,
    *(
        "manifest",
        "plan",
        "checkpoint",
        "partition",
        "partition's graph",
        "partition's weights",
        "decoder",
    ),
)
VALUES = (
    *(
        None,
        True,
        0,
        -1,
        3,
        2**31,
        2**63,
        2**70,
        0.5,
        1e308,
        "",
        "x",
        "../x",
        "s0",
        "__import__('os')",
        "nan",
        "cpu",
        "cuda:0",
    ),
    *([], [[]], {}, {"a": 1}, ["Add", "s0", 1], {"node": "x"}, {"tuple": []}, [None], "a" * 1000),
)


def mutated(data, seed):
    """Bytes that are not quite these: bits, pieces, or, of JSON, values that are changed."""
    chance = random.Random(seed)
    if chance.random() < 0.6:
        with contextlib.suppress(ValueError):
            return _mutated_json(json.loads(data), chance)
    found = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 8))):
        start = chance.randrange(len(found) + 1)
        kind = chance.randrange(4)
        if kind == 0 and found:
            found[start % len(found)] = chance.randrange(256)
        elif kind == 1:
            found[start:start] = chance.randbytes(chance.randrange(1, 9))
        elif kind == 2:
            del found[start : start + chance.randrange(1, 99)]
        else:
            found += found[start : start + chance.randrange(1, 99)]
    return bytes(found)


def _mutated_json(found, chance):
    found = copy.deepcopy(found)
    for _ in range(chance.choice((1, 1, 1, 3))):
        owner, at = None, None
        place = found
        while isinstance(place, (dict, list)) and place and (owner is None or chance.random() < 0.9):
            owner = place
            at = chance.choice(list(place)) if isinstance(place, dict) else chance.randrange(len(place))
            place = owner[at]
        if owner is None:
            return json.dumps(chance.choice(VALUES)).encode()
        match chance.randrange(4):
            case 0 if isinstance(owner, dict):
                owner[chance.choice(("x", "mixer", "node", "graph", ""))] = owner.pop(at)
            case 1:
                del owner[at]
            case 2 if isinstance(owner, list):
                owner.insert(at, copy.deepcopy(chance.choice(owner)))
            case _:
                owner[at] = chance.choice(VALUES)
    return json.dumps(found).encode()


def tried(times):
    return settings(
        max_examples=times, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
    )


def _any_bytes(readers, name, data):
    readers[name].try_on(data)


def _any_change(readers, name, seed):
    readers[name].try_on(mutated(readers[name].data, seed))


@pytest.mark.parametrize("name", NAMES)
def test_as_it_was_written_it_is_read(readers, name):
    reader = readers[name]
    if name == "decoder":
        with pytest.raises(ExportError, match="onnxruntime refuses the graph"):
            reader.read()
        return
    reader.read()


@pytest.mark.parametrize("name", NAMES)
@tried(4)
@given(data=st.binary(max_size=300))
def test_random_bytes(readers, name, data):
    _any_bytes(readers, name, data)


@pytest.mark.parametrize("name", NAMES)
@tried(9)
@given(seed=st.integers(0, 2**32))
def test_changed_files(readers, name, seed):
    _any_change(readers, name, seed)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", NAMES)
@tried(1500)
@given(data=st.binary(max_size=3000))
def test_more_random_bytes(readers, name, data):
    _any_bytes(readers, name, data)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", NAMES)
@tried(2000)
@given(seed=st.integers(0, 2**62))
def test_more_changed_files(readers, name, seed):
    _any_change(readers, name, seed)


CODE = ("__import__('os').system('ls')", "T.x", "T if T else 1", "(lambda: 1)()", "Max(*[1])")
NO_NUMBERS = ("[1]", "9**9**9", "2**-1", "1//0", "U", "-" * 5000 + "1", "1.5", "True")


def test_sizes_in_letters():
    assert value_of("2*(T//4) - 9 + Max(B, 3)**2", {"T": 21, "B": 2}) == 10
    for text in (*CODE, *NO_NUMBERS):
        with pytest.raises(TypedError, match="is no size in"):
            value_of(text, {"T": 2})
