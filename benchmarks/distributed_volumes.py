"""What each scheme sends and holds on up to 4,096 processes, counted on tensors without numbers, and which one wins.

Nothing is computed: torch's fake process group and fake tensors stand for processes and memory that are not here. Every
collective is counted as it is issued, and has to be what the cost model says, to the byte.

Run: python benchmarks/distributed_volumes.py
"""

from __future__ import annotations

import argparse
import json
import sys
import weakref
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from machine import describe
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from remixer.mixers import AttentionSpec
from remixer.mixers.distributed import Machine, Task, cost, pieces, ring
from remixer.mixers.distributed.cost import SCHEMES as NAMES
from remixer.mixers.distributed.cost import Scheme, layout_of, refusal
from remixer.mixers.distributed.ranks import ranks_of
from remixer.mixers.distributed.schemes import SCHEMES, Operands, Spread

# A model's attention: 32 heads of 128, with as many key heads, or with 8.
MODELS = {"32 key heads": 32, "8 key heads": 8}
MACHINES = {
    "fast links": Machine(flops=4e14, bandwidth=4e11, memory=2**36),
    "slow links": Machine(flops=1.5e14, bandwidth=1.5e10, memory=2**34),
}
RANKS = (8, 64, 512, 4096)
TOKENS = (2**20, 2**23, 2**27)


class Counted(TorchDispatchMode):
    """Bytes that this process sends, and the most that its tensors take at once."""

    def __init__(self) -> None:
        super().__init__()
        self.sent, self.held, self.most = 0, 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        self._count(str(func), args)
        for leaf in tree_leaves(found):
            if isinstance(leaf, Tensor):
                self._hold(leaf)
        return found

    def _count(self, name: str, args: Any) -> None:
        if not name.startswith("_c10d_functional") or "wait" in name:
            return
        size = args[0].numel() * args[0].element_size()
        if "all_gather" in name:
            self.sent += (args[1] - 1) * size
        elif "all_to_all" in name:
            own = dist.get_rank()
            self.sent += size // max(1, sum(args[2])) * (sum(args[2]) - args[2][own])

    def _hold(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if getattr(storage, "_counted", False):
            return
        storage._counted = True  # type: ignore[attr-defined]
        size = storage.nbytes()
        self.held += size
        self.most = max(self.most, self.held)
        weakref.finalize(storage, self._free, size)

    def _free(self, size: int) -> None:
        self.held -= size


def counted(scheme: Scheme, spec: AttentionSpec, tokens: int, size: int) -> Counted:
    """One forward pass of the first process."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=size)
    try:
        with FakeTensorMode(), torch.no_grad():
            layout = layout_of(scheme, spec)
            spread = Spread(spec, ranks_of("sequence"), layout, tokens, tokens)
            from remixer.mixers.distributed.layout import part_size

            part = part_size(tokens, size, layout)
            heads = (spec.heads, spec.kv_heads, spec.kv_heads)
            given = [torch.empty(1, each, part, spec.head_dim, dtype=torch.bfloat16) for each in heads]
            with Counted() as count:
                if scheme == "ring":  # as the operator does it: from outside nobody sees into it
                    options = pieces.ring_of(spec, tokens, layout, spread.ranks)
                    ring.attend_around(*given, None, None, *options)
                else:
                    SCHEMES[scheme](Operands(*given), spread)
            return count
    finally:
        dist.destroy_process_group()


def main() -> None:
    """Count, compare, print, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, nargs="+", default=RANKS)
    parser.add_argument("--tokens", type=int, nargs="+", default=TOKENS)
    parser.add_argument("--hops", type=int, default=64, help="rings of more processes are not counted hop by hop")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "distributed_volumes.json")
    options = parser.parse_args()
    console, rows = Console(width=130), []
    cases = [(model, size, tokens) for model in MODELS for size in options.ranks for tokens in options.tokens]
    for model, size, tokens in track(cases, console=console, transient=True):
        spec = AttentionSpec(
            heads=32,
            kv_heads=MODELS[model],
            head_dim=128,
            value_dim=128,
            scale=128**-0.5,
            causal=True,
            dtype=torch.bfloat16,
        )
        task = Task(spec, 1, tokens, tokens, size, element=2)
        for scheme in NAMES[1:]:
            row: dict[str, Any] = {"model": model, "ranks": size, "tokens": tokens, "scheme": scheme}
            why = refusal(scheme, task)
            if why is not None:
                rows.append(row | {"refused": why})
                continue
            expected = cost(scheme, task)
            row |= {"sent": expected.sent, "held": expected.held}
            if scheme != "ring" or size <= options.hops:
                found = counted(scheme, spec, tokens, size)
                if found.sent != expected.sent:
                    raise AssertionError(f"{row}: {found.sent} bytes are sent, the cost model says {expected.sent}")
                row |= {"counted": found.sent}
            for name, machine in MACHINES.items():
                row[name] = cost(scheme, task, machine).seconds
            rows.append(row)
    for name in MACHINES:
        for case in cases:
            mine = [row for row in rows if (row["model"], row["ranks"], row["tokens"]) == case and name in row]
            fit = [row for row in mine if row["held"] <= MACHINES[name].memory] or mine
            min(fit, key=lambda row: row[name]).setdefault("wins", []).append(name)
    table = Table("model", "processes", "tokens", "scheme", "GiB sent", "counted", "GiB held", *MACHINES, "wins")
    for row in rows:
        if "refused" in row:
            cells = [row["refused"], "", "", *("" for _ in MACHINES), ""]
        else:
            seconds = (f"{row[name]:.3g} s" for name in MACHINES)
            same = "equal" if "counted" in row else ""
            cells = [
                f"{row['sent'] / 2**30:.3f}",
                same,
                f"{row['held'] / 2**30:.2f}",
                *seconds,
                ", ".join(row.get("wins", [])),
            ]
        table.add_row(row["model"], f"{row['ranks']:,}", f"{row['tokens']:,}", row["scheme"], *cells)
    console.print(table)
    command = " ".join(["python", "benchmarks/distributed_volumes.py", *sys.argv[1:]])
    machines = {name: vars(machine) for name, machine in MACHINES.items()}
    result = {"command": command, "machine": describe(), "machines": machines, "rows": rows}
    options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
