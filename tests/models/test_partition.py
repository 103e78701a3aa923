"""The real pretrained models, run by four processes together."""

import sys
from pathlib import Path

import pytest
import torch
from pretrained import minilm, smollm2
from safetensors.torch import save_file

import remixer
from remixer.export import partition

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

import gradients_of_parts  # noqa: E402 - found by the line above

from processes import Processes  # noqa: E402

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    running = Processes(4, tmp_path_factory.mktemp("processes"), timeout=300)
    yield running
    running.close()


@pytest.fixture(scope="module", params=[minilm, smollm2], ids=["minilm", "smollm2"])
def model(request, tmp_path_factory):
    """The rewritten model, and files of inputs and of what one process gives for them."""
    original, _ = request.param()
    folder = tmp_path_factory.mktemp("model")
    T = 101
    ids = torch.randint(5, 1000, (2, T), generator=torch.Generator().manual_seed(0))
    mask = torch.ones(2, T, dtype=torch.long)
    if request.param is minilm:
        mask[0, 77:] = 0
    inputs = {"input_ids": ids, "attention_mask": mask}
    small = remixer.remix(original, "distributed", inputs)
    outputs = dict(small(**inputs))
    sum(each.square().mean() for each in outputs.values()).backward()
    wanted = {name: each.detach().contiguous() for name, each in outputs.items()}
    named = small.named_parameters(remove_duplicate=False)  # a partition may know a tied weight by another name
    wanted |= {f"gradient.{name}": each.grad.clone() for name, each in named if each.grad is not None}
    save_file(inputs, folder / "inputs.safetensors")
    save_file(wanted, folder / "wanted.safetensors")
    return small.eval(), folder


@pytest.mark.parametrize("scheme", ["replicated", "all_gather", "ring", "ulysses"])
def test_four_processes_give_what_one_gives(model, four, scheme, tmp_path):
    small, folder = model
    strategy = "replicated" if scheme == "replicated" else "sequence"
    try:
        part = partition(small, 4, strategy=strategy, scheme="auto" if scheme == "replicated" else scheme)
    except remixer.export.PartitionError as error:
        assert scheme in ("ring", "ulysses")
        print(f"not by {scheme}: {error}")
        return
    part.save(tmp_path / "parts")
    files = (folder / "inputs.safetensors", folder / "wanted.safetensors")
    for difference, name in four(gradients_of_parts.differences, tmp_path / "parts", *files):
        print(f"{scheme}: {difference:.2g} at {name}")
        assert difference < 1e-4, name


@pytest.mark.parametrize(
    "options", [{"strategy": "stages"}, {"stages": 2, "scheme": "all_gather"}], ids=["4 stages", "2 x 2"]
)
def test_stages_give_what_one_gives(model, four, options, tmp_path):
    small, folder = model
    part = partition(small, 4, **options)
    for number, stage in enumerate(part.plan.stages):
        crossing = ", ".join(f"{each.name} {each.bytes}" for each in stage.receives)
        print(f"stage {number}: {stage.flops / 1e9:.1f} GFLOP, {stage.bytes / 2**20:.1f} MiB; receives {crossing}")
    part.save(tmp_path / "parts")
    files = (folder / "inputs.safetensors", folder / "wanted.safetensors")
    for difference, name in four(gradients_of_parts.differences, tmp_path / "parts", *files):
        print(f"{options}: {difference:.2g} at {name}")
        assert difference < 1e-4, name
