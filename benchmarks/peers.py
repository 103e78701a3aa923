"""One mixer beside fused attention: what all benchmarks of mixers measure, and what it could cost at best."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.utils.benchmark import Timer

from remixer.mixers import AttentionSpec, LongShort, LongShortMixer, Mixer, Toeplitz, ToeplitzMixer

HEADS, HEAD_DIM = 12, 32
WIDTH = HEADS * HEAD_DIM
WINDOW, RANK = 128, 32
PEERS = ("attention", "window", "toeplitz", "long_short")  # the second is FlexAttention with a sliding window, compiled


def build(name: str, causal: bool) -> Mixer:
    """A mixer as it starts out, ready for inference."""
    spec = AttentionSpec(
        heads=HEADS, kv_heads=HEADS, head_dim=HEAD_DIM, value_dim=HEAD_DIM, scale=HEAD_DIM**-0.5, causal=causal
    )
    if name == "toeplitz":
        return ToeplitzMixer(spec, Toeplitz()).eval()
    return LongShortMixer(spec, LongShort(window=WINDOW, rank=1 if causal else RANK, sinks=0)).eval()


def call_of(
    name: str, causal: bool, length: int, dtype: torch.dtype = torch.float32, *, backward: bool = False
) -> Callable[[], Tensor]:
    """One forward pass over random operands, or one forward and backward pass."""
    torch.manual_seed(0)
    operands = [torch.randn(1, HEADS, length, HEAD_DIM, dtype=dtype, requires_grad=backward) for _ in range(3)]
    query, key, value = operands
    forward = _forward_of(name, causal, length, dtype, backward)
    if not backward:
        return lambda: forward(query, key, value)

    def both() -> Tensor:
        for operand in operands:
            operand.grad = None
        mixed = forward(query, key, value)
        mixed.backward(torch.ones_like(mixed))
        return mixed

    return both


def _forward_of(
    name: str, causal: bool, length: int, dtype: torch.dtype, training: bool
) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """A peer as a function of query, key and value."""
    if name == "attention":
        return lambda query, key, value: F.scaled_dot_product_attention(query, key, value, is_causal=causal)
    if name == "window":
        left, right = WINDOW, 0 if causal else WINDOW
        seen = create_block_mask(
            lambda b, h, i, j: (i - j <= left) & (j - i <= right), None, None, length, length, device="cpu"
        )
        torch.compiler.reset()  # one graph per length, of which it keeps a few only
        compiled = torch.compile(flex_attention, dynamic=False)
        return lambda query, key, value: compiled(query, key, value, block_mask=seen)
    mixer = build(name, causal).to(dtype).train(training)
    if name == "toeplitz":
        return lambda query, key, value: mixer(value=value)
    return lambda query, key, value: mixer(query, key, value)


def work_of(name: str, causal: bool, length: int, size_of_number: int = 4) -> tuple[float, float]:
    """Floating-point operations and bytes that no implementation of this definition's forward pass gets by without."""
    tokens = float(size_of_number) * length * WIDTH  # bytes of one operand
    if name == "attention":
        return 4.0 * length * length * WIDTH / (2 if causal else 1), 4 * tokens
    if name == "toeplitz":
        size = 2 * length
        transforms = 2 * 2.5 * size * math.log2(size) + 3 * size
        return transforms * WIDTH, 3 * tokens + 4.0 * size * WIDTH
    if name == "window":
        return 4.0 * length * WIDTH * WINDOW * (1 if causal else 2), 4 * tokens
    summaries = LongShort().memory if causal else RANK
    seen = WINDOW if causal else 2 * WINDOW
    pooling = 6.0 * length * WIDTH * (1 if causal else RANK)
    return 4.0 * length * WIDTH * (seen + (summaries or 0)) + pooling, 4 * tokens


def rates(dtype: torch.dtype = torch.float32) -> tuple[float, float]:
    """What this machine does at best now: operations a second in a matrix product, bytes a second in a copy."""
    matrix, long = torch.randn(1024, 1024, dtype=dtype), torch.randn(2**25)
    copy = torch.empty_like(long)
    product = min(seconds(lambda: matrix @ matrix) for _ in range(20))
    moved = min(seconds(lambda: copy.copy_(long)) for _ in range(10))
    return 2 * 1024**3 / product, 2 * 4 * long.numel() / moved


def seconds(call: Callable[[], object]) -> float:
    """How long one call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def steady_seconds(call: Callable[[], object], threads: int) -> float:
    """How long one call takes when it is repeated for a quarter of a second: caches are its own by then."""
    timer = Timer("call()", globals={"call": call}, num_threads=threads)
    return timer.blocked_autorange(min_run_time=0.25).median
