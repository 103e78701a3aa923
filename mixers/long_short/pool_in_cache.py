"""Summaries of a whole sequence at inference on a CPU: some heads and tokens at a time, whose weights stay in cache."""

from __future__ import annotations

from torch import Tensor

from remixer.mixers.long_short.exponentials import IN_BASE_2, in_range
from remixer.mixers.precision import at_least_float32
from remixer.mixers.workspace import workspace

# How many weights are made before they are used.
WEIGHTS_IN_CACHE = 2**19


def pool_in_cache(
    pooling: Tensor, reads: Tensor, key: Tensor, value: Tensor, padding: Tensor | None
) -> tuple[Tensor, Tensor] | None:
    """P^T K and P^T V with P = softmax over all tokens of (reads W_P), see `pool`; computed in float32 at least.

    The sum that the softmax divides by is divided by at the end, so that tokens can come in any portions.

    Returns:
        (B, G, rank, D) and (B, G, rank, E), or None where the weights are too uneven for that.
    """
    (B, G, S, D), E, rank = key.shape, value.shape[3], pooling.shape[2]
    dtype = at_least_float32(key.dtype)
    far_key, far_value = (key.new_zeros(B * G, rank, size, dtype=dtype) for size in (D, E))
    total = key.new_zeros(B * G, rank, dtype=dtype)
    run = min(S, WEIGHTS_IN_CACHE // rank)
    heads = max(1, min(G, WEIGHTS_IN_CACHE // (run * rank)))
    for b in range(B):
        for g in range(0, G, heads):
            some, mine = slice(g, g + heads), slice(b * G + g, b * G + min(g + heads, G))
            project = pooling[some].transpose(1, 2).to(dtype)
            for start in range(0, S, run):
                tokens = slice(start, start + run)
                read = (reads[b] if reads.shape[1] == 1 else reads[b, some])[:, tokens].to(dtype)
                read = read.expand(len(project), -1, -1)
                weights = workspace.take("weights", (len(project), rank, read.shape[1]), dtype)
                weights.baddbmm_(project, read.transpose(1, 2), beta=0, alpha=IN_BASE_2).exp2_()
                if padding is not None:
                    weights.mul_(padding[b, tokens])
                total[mine] += weights.sum(2)
                far_key[mine].baddbmm_(weights, key[b, some, tokens].to(dtype))
                far_value[mine].baddbmm_(weights, value[b, some, tokens].to(dtype))
    if not in_range(total):
        return None
    shares = total[..., None]
    far = (each.div_(shares).unflatten(0, (B, G)).to(key.dtype) for each in (far_key, far_value))
    return next(far), next(far)
