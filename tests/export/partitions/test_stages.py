"""Models of which each process has some layers, and those also spread over others."""

import json
import re

import pytest
import reader
import torch
from reader import Reader, inputs
from torch import nn

import remixer
from processes import Processes
from remixer.export import PartitionError, partition
from remixer.testing import assert_close


@pytest.fixture(scope="module")
def small():
    torch.manual_seed(0)
    return remixer.remix(Reader(layers=3).double().eval(), "distributed", inputs())


PARTS = {
    "stages": (2, {"strategy": "stages"}),
    "ring": (4, {"stages": 2, "scheme": "ring"}),
    "replicated": (4, {"stages": 2, "strategy": "replicated"}),
    "all_gather": (4, {"stages": 2, "scheme": "all_gather"}),
    "ulysses": (4, {"stages": 2, "scheme": "ulysses"}),
    "four": (4, {"strategy": "stages"}),
}


@pytest.fixture(scope="module")
def parts(small, tmp_path_factory):
    """Folders, and for how many processes they are."""
    folder, made = tmp_path_factory.mktemp("parts"), {}

    def get(name):
        ranks, options = PARTS[name]
        if name not in made:
            made[name] = folder / name
            model = remixer.remix(Reader(layers=4).eval(), "distributed", inputs()) if name == "four" else small
            partition(model, ranks, **options).save(made[name])
        return made[name], ranks

    return get


def each_but_slow(*fast):
    others = [name for name in PARTS if name not in (*fast, "four")]
    return [*fast, *(pytest.param(name, marks=pytest.mark.slow) for name in others)]


@pytest.mark.parametrize("name", each_but_slow("stages", "ulysses"))  # whose outputs don't lie as they are sent
def test_processes_give_what_one_gives(small, parts, processes, name):
    folder, ranks = parts(name)
    shapes = [(12, 2), (7, 1), (3, 2), (33, 3), (1, 4), (12, 4)]
    for found in processes(ranks)(reader.outputs, folder, *shapes):
        for shape, got in zip(shapes, found, strict=True):
            assert_close(got, dict(small(**inputs(*shape))))


@pytest.mark.parametrize("name", each_but_slow("stages", "ring"))
@pytest.mark.parametrize("shape", [(7, 3), (5, 6)])
def test_averaged_gradients_are_those_of_one_process(small, parts, processes, name, shape):
    folder, ranks = parts(name)
    wanted = _gradients(small, shape)
    seen = set()
    for got in processes(ranks)(reader.stage_gradients, folder, shape):
        seen |= got.keys()
        for weight, grad in got.items():
            assert_close(grad, wanted[weight])
    assert len(seen) == len(dict(small.named_parameters()))


@pytest.mark.parametrize("how", ["frozen", "parallel", "mesh", "microbatches"])
def test_training_in_other_ways(small, parts, processes, how):
    folder, _ = parts("ring")
    wanted = _gradients(small, (9, 6))
    for rank, got in enumerate(processes(4)(reader.other_gradients, folder, how)):
        assert bool(got) == (how != "frozen" or rank > 1)
        for name, grad in got.items():
            assert_close(grad, wanted[name])


def test_inputs_get_gradients_too(processes, tmp_path):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.0)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    x = torch.randn(2, 5, 16)
    small = remixer.remix(model, "distributed", {"src": torch.randn(2, 8, 16)})
    partition(small, 2, strategy="stages").save(tmp_path / "parts")
    leaf = x.clone().requires_grad_()
    small(src=leaf).square().mean().backward()
    for grad in processes(2)(reader.input_gradient, tmp_path / "parts", x):
        assert_close(grad, leaf.grad)


def test_what_is_written(small, parts, tmp_path):
    folder, _ = parts("ring")
    names = sorted(re.sub(r"\.\w{12}\.", ".", file.name) for file in folder.iterdir())
    assert names == ["plan.json", *(f"stage{stage}.{kind}" for stage in (0, 1) for kind in ("json", "safetensors"))]
    plan = json.loads((folder / "plan.json").read_text())
    assert plan["mesh"] == {"stages": 2, "sequence": 2}
    assert plan["error"] <= 1e-10
    (first, last) = plan["stages"]
    assert first["receives"] == []
    (hidden,) = last["receives"]
    assert (hidden["shape"], hidden["spread"], hidden["bytes"]) == (["B", "T", "32"], 1, "256*B*T")
    assert next(iter(first["tied"].values())) in last["tied"].values()
    assert len(plan["fingerprint"]) == 4
    partition(small, 2, strategy="stages").save(tmp_path / "parts")
    partition(small, 1).save(tmp_path / "parts")  # leaves nothing of the other
    assert len(list((tmp_path / "parts").iterdir())) == 3


def test_what_can_not_be_split_is_refused(small):
    with pytest.raises(ValueError, match="4 processes can't be spread evenly over stages=3"):
        partition(small, 4, stages=3)
    with pytest.raises(ValueError, match="each of the 4 processes is one stage, got stages=2"):
        partition(small, 4, strategy="stages", stages=2)
    with pytest.raises(PartitionError, match="cannot split into 99 stages"):
        partition(small, 99, strategy="stages")


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("weights", r"process 1 says: stage1\.\w+\.safetensors is not the one that was written with the plan"),
        ("processes", "for 4 processes, these are 2"),
        ("microbatches", "cannot cut a batch of 3 rows into microbatches=2 of equal size"),
        ("number", "process 1 has another number of microbatches than process 0: 2 and 1"),
        ("shapes", "process 1 has another shapes than process 0"),
    ],
)
def test_faults_are_errors_on_all(parts, processes, tmp_path, how, told):
    folder, _ = parts("ring" if how == "processes" else "stages")
    for kind, found in processes(2)(reader.stage_faults, folder, tmp_path, how):
        assert kind == "PartitionError"
        assert re.search(told, found), found


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["forward", "backward"])
@pytest.mark.parametrize("how", ["killed", "hung"])
def test_a_process_that_is_gone_is_named_on_all_others(parts, tmp_path, how, moment):
    folder, ranks = parts("four")
    running = Processes(ranks, tmp_path, timeout=15)
    try:
        running.start(reader.one_stage_leaves, folder, how, moment)
        for rank in (0, 2, 3):
            fine, (kind, told, seconds) = running.answer(rank)
            assert fine
            assert kind == "PartitionError"
            assert f"process {rank} can't go on: process 1 is gone or hangs" in told
            assert seconds < 90
    finally:
        running.close()


def _gradients(small, shape):
    small.zero_grad()
    found = small(**inputs(*shape))
    (found["logits"].square().mean() + found["mean"].sum()).backward()
    return {name: each.grad for name, each in small.named_parameters(remove_duplicate=False)}
