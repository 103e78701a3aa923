"""One model, two processes, each with half of the tokens: partition, save, run under torchrun, train a step.

This script partitions a model, then starts itself twice through torchrun; each of the two processes loads the parts and
compares outputs and gradients with those of the whole model in one process.

Run: python examples/08_two_processes.py [--tokens 501]
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

import remixer
from remixer.testing import assert_close


def whole() -> nn.Module:
    """A causal Transformer of three layers, always with the same weights."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(64, 4, 128, dropout=0.0, batch_first=True, norm_first=True)
    return nn.TransformerEncoder(layer, 3, enable_nested_tensor=False).eval()


def one_process(folder: Path, tokens: int) -> None:
    """What each of the two does."""
    part = remixer.export.load_partition(folder)
    x = torch.randn(2, tokens, 64, generator=torch.Generator().manual_seed(1))
    found = part(src=x)  # all tokens go in and all come out; each process works on half of them
    found.square().mean().backward()
    for weight in part.parameters():  # gradients are averaged, as DistributedDataParallel does it
        if weight.grad is not None:
            dist.all_reduce(weight.grad)
            weight.grad /= dist.get_world_size()

    model = whole()
    expected = model(x)
    expected.square().mean().backward()
    assert_close(found, expected)
    named = dict(part.module.named_parameters())
    for name, weight in model.named_parameters():
        assert_close(named[name].grad, weight.grad)
    if dist.get_rank() == 0:
        print(f"{tokens} tokens on {dist.get_world_size()} processes: outputs and gradients are those of one")
    dist.destroy_process_group()


def main() -> None:
    """Partition, and start the processes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=501, help="an odd number: what is left over is padded")
    parser.add_argument("--parts", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.parts is not None:
        one_process(options.parts, options.tokens)
        return
    small = remixer.remix(whole(), "distributed", {"src": torch.randn(2, 32, 64)})
    part = remixer.export.partition(small, ranks=2, strategy="sequence", scheme="auto")
    print("scheme:", part.plan.scheme, "because", part.plan.reason)
    with tempfile.TemporaryDirectory() as folder:
        part.save(folder)
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        mine = [__file__, "--parts", folder, "--tokens", str(options.tokens)]
        subprocess.run([*torchrun, *mine], env={"OMP_NUM_THREADS": "1", **os.environ}, check=True)


if __name__ == "__main__":
    main()
