"""What torch.export is told about its own work."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def quick_tracing() -> Iterator[None]:
    """Lets torch trace with symbolic sizes without a cache of what each operator gives.

    A cached result is checked by making it a second time, from all of its symbolic sizes. In graphs of few repetitions
    that takes a third of the export, and deep ones take no longer without the cache. The graph is the same.
    """
    from torch._dynamo import config

    with config.patch(fake_tensor_cache_enabled=False):
        yield
