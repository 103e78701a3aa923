"""Models written once, and run by several processes together."""

import copy
import json
import re
import shutil

import pytest
import reader
import torch
from reader import Reader, inputs

import remixer
from remixer import Toeplitz
from remixer.export import PartitionError, files, partition
from remixer.export.partitions.plan import PartitionPlan
from remixer.testing import assert_close


@pytest.fixture(scope="module")
def small():
    torch.manual_seed(0)
    return remixer.remix(Reader().eval(), "distributed", inputs())


@pytest.fixture(scope="module")
def parts(small, tmp_path_factory):
    """Folders by scheme, for four processes."""
    folder, made = tmp_path_factory.mktemp("parts"), {}

    def get(scheme):
        if scheme not in made:
            made[scheme] = folder / scheme
            strategy = "replicated" if scheme == "replicated" else "sequence"
            chosen = "auto" if scheme == "replicated" else scheme
            partition(small, 4, strategy=strategy, scheme=chosen).save(made[scheme])
        return made[scheme]

    return get


EACH = pytest.mark.parametrize("scheme", ["replicated", "all_gather", "ring", "ulysses"])


@EACH
def test_processes_give_what_one_gives(small, parts, processes, scheme):
    shapes = [(12, 2), (7, 1), (3, 2), (33, 3)]
    for found in processes(4)(reader.outputs, parts(scheme), *shapes):
        for shape, got in zip(shapes, found, strict=True):
            assert_close(got, dict(small(**inputs(*shape))))


@EACH
def test_averaged_gradients_are_those_of_one_process(small, parts, processes, scheme):
    small.zero_grad()
    found = small(**inputs(13, 2))
    (found["logits"].square().mean() + found["mean"].sum()).backward()
    wanted = {name: each.grad for name, each in small.named_parameters(remove_duplicate=False)}
    for got in processes(4)(reader.gradients, parts(scheme), (13, 2)):
        assert len(got) == len(dict(small.named_parameters()))  # a tied weight is still one
        for name, grad in got.items():
            assert_close(grad, wanted[name])


def test_what_is_written(parts):
    folder = parts("ring")
    assert [file.name.split(".")[0] for file in sorted(folder.iterdir())] == ["graph", "plan", "weights"]
    plan = json.loads((folder / "plan.json").read_text())
    assert (plan["ranks"], plan["strategy"], plan["scheme"], plan["layout"]) == (4, "sequence", "ring", "zigzag")
    assert plan["mesh"] == {"sequence": 4}
    assert plan["gathered"] == []
    assert plan["error"] < 1e-5
    weights = next(folder.glob("weights.*.safetensors")).stat().st_size
    assert next(folder.glob("graph.*.json")).stat().st_size < weights + 100_000  # the weights are written once


def test_a_save_that_is_cut_off_leaves_the_earlier_one(small, tmp_path, monkeypatch):
    folder = tmp_path / "parts"
    partition(small, 2, scheme="ring").save(folder)
    before = PartitionPlan.read(folder)
    other = copy.deepcopy(small)
    with torch.no_grad():
        for weight in other.parameters():
            weight.add_(1.0)
    replace = files.os.replace

    def until_the_plan(source, target):
        if target.name == "plan.json":
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "replace", until_the_plan)
        with pytest.raises(KeyboardInterrupt):
            partition(other, 2, scheme="ring").save(folder)
    assert len(list(folder.glob("weights.*"))) == 2, "it was cut off in the middle"
    assert PartitionPlan.read(folder) == before
    assert all(files.digest(folder / name) == found for name, found in before.fingerprint.items())
    partition(other, 2, scheme="ring").save(folder)
    assert PartitionPlan.read(folder).fingerprint != before.fingerprint
    assert len(list(folder.iterdir())) == 3


def test_auto_says_why(small):
    plan = partition(small, 3, tokens=4096).plan
    assert plan.scheme in ("all_gather", "ring")
    assert "not ulysses: 4 heads can't be spread over 3 processes" in plan.reason


def test_other_shapes_in_one_process_are_an_error_on_all(parts, processes):
    for kind, told in processes(4)(reader.different_shapes, parts("all_gather")):
        assert kind == "PartitionError"
        assert "process 1 has another shapes than process 0" in told


def test_another_number_of_processes_is_an_error_on_all(parts, processes):
    for kind, told in processes(2)(reader.refused, parts("ring")):
        assert kind == "PartitionError"
        assert "process 0 says: the model was partitioned for 4 processes, these are 2" in told


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("weights", r"process 2 says: weights\.\w+\.safetensors is not the one that was written with the plan"),
        ("gone", "process 2 says: .* holds no partitioned model"),
        ("versions", "process 2 says: the graph was written by torch 1.0"),
        ("format", "process 2 says: .*plan.json is of format 99"),
        ("plan", "process 2 has another plan than process 0: reason: other and it was asked for"),
    ],
)
def test_a_process_that_differs_is_named_on_all(parts, processes, tmp_path, change, told):
    good, bad = parts("all_gather"), tmp_path / "bad"
    shutil.copytree(good, bad)
    plan = json.loads((bad / "plan.json").read_text())
    if change == "weights":
        file = next(bad.glob("weights.*.safetensors"))
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.write_bytes(data)
    elif change == "gone":
        (bad / "plan.json").unlink()
    else:
        plan["versions"]["torch"] = "1.0" if change == "versions" else plan["versions"]["torch"]
        plan["format"] = 99 if change == "format" else plan["format"]
        plan["reason"] = "other" if change == "plan" else plan["reason"]
        (bad / "plan.json").write_text(json.dumps(plan))
    for kind, found in processes(4)(reader.refused, None, [good, good, bad, good]):
        assert kind == "PartitionError"
        assert re.search(told, found), found


def test_what_can_not_be_spread_is_refused(small):
    with pytest.raises(PartitionError, match="4 heads can't be spread over 3 processes"):
        partition(small, 3, scheme="ulysses")
    with pytest.raises(PartitionError, match="give strategy='replicated' instead"):
        partition(small, 2, scheme="replicated")
    with pytest.raises(PartitionError, match=r"takes what remixer\.remix gave, got Reader"):
        partition(Reader(), 2)
    with pytest.raises(ValueError, match="ranks counts processes, at least 1, got 0"):
        partition(small, 0)
    with pytest.raises(ValueError, match="strategy must be"):
        partition(small, 2, strategy="layers")
    with pytest.raises(ValueError, match="there is no folder"):
        partition(small, 2).save("/nowhere/parts")


def test_other_mixers_go_by_their_heads(processes, tmp_path):
    scheme = "ring"
    torch.manual_seed(0)
    choice = {"attention": Toeplitz(gate="value"), "*": Toeplitz(per="head", normalise=False)}
    small = remixer.remix(Reader().eval(), choice, inputs())
    for name, weight in small.named_parameters():
        if "mixer" in name:
            torch.nn.init.normal_(weight, std=0.3)  # no head like another
    small.eval()
    part = partition(small, 4, scheme=scheme)
    assert part.plan.gathered == ()
    part.save(tmp_path / "parts")
    shapes = [(12, 2), (7, 1), (3, 2), (33, 3)]
    for found in processes(4)(reader.outputs, tmp_path / "parts", *shapes):
        for shape, got in zip(shapes, found, strict=True):
            assert_close(got, dict(small(**inputs(*shape))))
    three = partition(small, 3, scheme=scheme).plan  # which four heads can't be spread over
    assert any("'toeplitz' runs on the whole sequence" in told for told in three.gathered)
