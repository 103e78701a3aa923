"""Train a small Toeplitz Neural Network from scratch on 256 bytes, and let it read 4,096.

A TNN (Qin et al., 2023, arXiv 2305.04749) has no attention and no positions: each layer is a `ToeplitzBlock`, a
convolution as long as the text whose coefficients follow from the distance. So it reads longer texts as well as those
that it was trained on. The text is Python's standard library, the held-out part modules that it never saw.

Run: python examples/09_train_a_tnn.py [--steps 120]
"""

import argparse
import math
import sysconfig
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from remixer.mixers import SimpleRMSNorm, ToeplitzBlock

START = 256  # stands before the first byte
TRAINED, LONGER = 256, 4096
HELD_OUT = ("typing.py", "tarfile.py")


class ByteTNN(nn.Module):
    """Predicts each byte from those before it."""

    def __init__(self, width: int = 64, layers: int = 2) -> None:
        super().__init__()
        self.embedding = nn.Embedding(START + 1, width)
        self.blocks = nn.ModuleList(ToeplitzBlock(width, causal=True) for _ in range(layers))
        self.norm, self.head = SimpleRMSNorm(), nn.Linear(width, START)

    def forward(self, pieces: Tensor) -> Tensor:
        """Mean nats per byte of pieces (B, T)."""
        hidden = self.embedding(F.pad(pieces[:, :-1], (1, 0), value=START))
        for block in self.blocks:
            hidden = block(hidden)
        return F.cross_entropy(self.head(self.norm(hidden)).flatten(0, 1), pieces.flatten())


def texts() -> tuple[Tensor, Tensor]:
    """Bytes to learn from, and bytes held out."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    learned = b"".join(file.read_bytes() for file in sorted(folder.glob("*.py")) if file.name not in HELD_OUT)
    held_out = b"".join((folder / name).read_bytes() for name in HELD_OUT)
    return torch.tensor(list(learned[: 2**21])), torch.tensor(list(held_out[: 8 * LONGER]))


def main() -> None:
    """Train, then read."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=120)
    steps = parser.parse_args().steps
    torch.manual_seed(0)
    known, unknown = texts()
    model = ByteTNN()
    optimiser = torch.optim.AdamW(model.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 5e-3, total_steps=steps)
    for step in range(steps):
        starts = torch.randint(len(known) - TRAINED, (8, 1))
        loss = model(known[starts + torch.arange(TRAINED)])
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        if step % 20 == 0:
            print(f"step {step}: {loss.item() / math.log(2):.2f} bits per byte")
    with torch.no_grad():
        bits = {n: model(unknown.view(-1, n)).item() / math.log(2) for n in (TRAINED, LONGER)}
    for length, found in bits.items():
        print(f"held-out text in blocks of {length:,} bytes: {found:.3f} bits per byte")
    assert bits[LONGER] < 1.02 * bits[TRAINED], "longer texts are read as well"
    print(f"trained on {TRAINED} bytes, it reads {LONGER:,} as well")


if __name__ == "__main__":
    main()
