"""A Long-Short mixer's attention as plain products of tiles, which stay where products can read them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from remixer.export.onnx.weights import with_weights_of
from remixer.mixers.long_short.joint_attention import hidden_score
from remixer.mixers.long_short.mixer import LongShortMixer
from remixer.mixers.long_short.offset_columns import joined_columns
from remixer.mixers.long_short.sight import Sight, Tokens


class LoweredLongShort(LongShortMixer):
    """The numbers of a Long-Short mixer in eval mode."""

    @classmethod
    def of(cls, mixer: LongShortMixer) -> LoweredLongShort:
        """With the weights of a mixer, which are shared."""
        return with_weights_of(mixer, cls(mixer.spec, mixer.config))

    def mix(
        self,
        query: Tensor,
        keys: Tokens,
        values: Tokens,
        sight: Sight,
        offsets: Tensor | None,
        *,
        masked: bool,
        dropout: float,
    ) -> Tensor:
        """See LongShortMixer.mix."""
        spec, tiling, T = sight.spec, sight.tiling, query.shape[2]
        tiles = tiling.count(T)
        rows = tiling.queries(query, spec.groups, 0, tiles)  # (B, G, tiles, groups, length, D)
        key, value = (sight.joined(each, 0, tiles)[:, :, :, None] for each in (keys, values))
        scores = (rows @ key.transpose(-1, -2)) * (spec.scale / (spec.softcap or 1.0))
        if spec.softcap is not None:
            scores = spec.softcap * torch.tanh(scores)
        base = bias = sight.bias(0, tiles, scores.dtype)
        if self.summary_bias is not None:
            by_head = self.summary_bias.to(scores.dtype).view(1, spec.kv_heads, 1, spec.groups, 1, 1)
            added = F.pad(by_head.expand(*[-1] * 5, sight.summaries), (0, sight.width - sight.summaries))
            if spec.causal:
                scores = scores + added  # beside a bias for each query, which it would make one for each head too
            else:
                bias = bias + added
        if offsets is not None:
            bias = bias + joined_columns(sight, offsets, 0, tiles).to(scores.dtype)
        mixed = torch.softmax(scores + bias, -1) @ value
        if masked:
            mixed = mixed * (base > hidden_score(base.dtype)).any(-1, keepdim=True).to(mixed.dtype)
        return tiling.untiled(mixed, T)
