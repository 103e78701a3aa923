"""Where a mixer may take the shortcuts of plain inference, or of plain training."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def plain_inference(*tensors: Tensor) -> bool:
    """Whether these are ordinary CPU tensors that nobody differentiates, traces, exports or maps over.

    Only then do mixers loop over heads so that what lies between stays in cache, write in place and keep
    results: a graph would be unrolled by the loops, and autograd has to keep every intermediate anyway.
    """
    return not torch.is_grad_enabled() and plain(*tensors)


def plain_training(*tensors: Tensor) -> bool:
    """Whether these are ordinary CPU tensors, some of which autograd differentiates, and nothing else looks at.

    Only then do mixers bring gradients of their own.
    """
    return in_training(*tensors) and plain(*tensors)


def in_training(*tensors: Tensor) -> bool:
    """The same of tensors that may be on any device."""
    return torch.is_grad_enabled() and any(each.requires_grad for each in tensors) and untraced(*tensors)


def unwatched() -> bool:
    """Whether no dispatch mode wants to see every operator, which compiled code doesn't show."""
    return torch._C._len_torch_dispatch_stack() == 0


def unobserved(*tensors: Tensor) -> bool:
    """Whether nobody differentiates, traces, exports or maps over these tensors, whatever device they are on.

    Nor captures a CUDA graph, which can't wait for a comparison with what is kept.
    """
    if torch.is_grad_enabled() or not untraced(*tensors):
        return False
    return not (any(tensor.is_cuda for tensor in tensors) and torch.cuda.is_current_stream_capturing())


def all_exist(padding: Tensor | None) -> bool:
    """Whether no token is missing; asked only where that is free: on a CPU, of a mask that nobody traces."""
    return padding is None or (plain(padding) and bool(padding.all()))


def plain(*tensors: Tensor) -> bool:
    """Whether these are ordinary CPU tensors that nobody traces, exports or maps over; autograd may be at work."""
    return untraced(*tensors) and all(tensor.device.type == "cpu" for tensor in tensors)


def untraced(*tensors: Tensor) -> bool:
    """Whether nobody traces, exports or maps over these tensors."""
    if torch.compiler.is_compiling() or torch.jit._trace.is_tracing():
        return False
    return all(
        type(tensor) in (Tensor, nn.Parameter) and not torch._C._functorch.is_functorch_wrapped_tensor(tensor)
        for tensor in tensors
    )


def written(buffer: Tensor, dim: int, index: Tensor, new: Tensor) -> Tensor:
    """The buffer with new entries at some places; in its own memory where nobody looks at what was there."""
    new = new.to(buffer.dtype)
    return buffer.index_copy_(dim, index, new) if plain_inference(buffer, new) else buffer.index_copy(dim, index, new)
