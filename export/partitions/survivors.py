"""Which processes are still there, after one of them could not go on."""

from __future__ import annotations

import time
from datetime import timedelta

import torch.distributed as dist

from remixer.export.partitions.places import Everyone


def missing(everyone: Everyone, call: int, patience: timedelta) -> list[int]:
    """The processes that don't say that they could not go on either.

    They meet at the store by which they found each other: a process that is gone, or hangs, says nothing there.

    Args:
        everyone: the processes.
        call: how many calls there have been: processes that meet are at the same one.
        patience: how long to wait for the others: as long as they may wait for one that is gone.

    Returns:
        Their places; empty if all are there, or the store is gone too.
    """
    store, rank, size = dist.distributed_c10d._get_default_store(), everyone.rank, len(everyone.members)
    key = f"remixer/{everyone.groups[0].group_name}/{everyone.members}/{call}"
    end = time.monotonic() + patience.total_seconds()
    try:
        store.set(f"{key}/{rank}", "here")
        while True:
            gone = [other for other in range(size) if not store.check([f"{key}/{other}"])]
            if not gone or time.monotonic() > end:
                return gone
            time.sleep(0.1)
    except (RuntimeError, ValueError):  # the store went with the process that had it
        return [0] if rank else []
