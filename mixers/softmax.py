"""Softmax attention (Vaswani et al., 2017, equation 1), exact: the mixer that changes nothing."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from remixer.mixers.base import Mixer, MixerConfig, Order, State, Unsupported
from remixer.mixers.eager import plain_inference
from remixer.mixers.key_value_cache import empty_cache, extended, kept_in_cache, seen_in_cache
from remixer.mixers.masks import added_mask, allowed_keys
from remixer.mixers.offset_bias import dense_bias, existing_places
from remixer.mixers.registry import register
from remixer.mixers.spec import AttentionSpec


def repeat_heads(tensor: Tensor, groups: int) -> Tensor:
    """(B, G, S, D) to (B, G * groups, S, D): every key/value head repeated for the heads that read it."""
    if groups == 1:
        return tensor
    B, G, S, D = tensor.shape
    return tensor[:, :, None].expand(B, G, groups, S, D).reshape(B, G * groups, S, D)


def with_sink(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, sink: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Keys, values and a mask with one key more: it and its value are zero, and the mask gives it its score.

    Args:
        query: (B, H, T, D).
        key: (B, G, S, D).
        value: (B, G, S, E).
        mask: broadcastable to (B, H, T, S), or None.
        sink: (H,).

    Returns:
        (B, G, S + 1, D), (B, G, S + 1, E) and (B or 1, H, T, S + 1).
    """
    (_, H, T, _), S = query.shape, key.shape[2]
    added = query.new_zeros(1, 1, 1, 1) if mask is None else mask
    if added.dtype == torch.bool:
        added = query.new_zeros(()).masked_fill(~added, -torch.inf)
    while added.dim() < 4:
        added = added[None]
    added = added.to(query.dtype).expand(-1, H, T, S)
    score = sink.to(query.dtype)[None, :, None, None].expand(added.shape[0], -1, T, 1)
    return F.pad(key, (0, 0, 0, 1)), F.pad(value, (0, 0, 0, 1)), torch.cat([added, score], -1)


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    *,
    spec: AttentionSpec,
    causal: bool = False,
    dropout: float = 0.0,
    sink: Tensor | None = None,
) -> Tensor:
    """softmax(softcap(scale * query key^T) + mask) value.

    Args:
        query: (B, H, T, D).
        key: (B, G, S, D).
        value: (B, G, S, E).
        mask: broadcastable to (B, H, T, S), bool (True: may see) or added to the scores; None for no mask.
        spec: gives scale, softcap and head counts.
        causal: mask the future too, without a mask tensor; mask must be None.
        dropout: probability with which weights are dropped.
        sink: (H,), a score that takes part in every softmax and has no value, or None.

    Returns:
        (B, H, T, E).
    """
    if sink is not None:
        if causal:
            mask = allowed_keys(spec, query.shape[2], key.shape[2], None, query.device)
        key, value, mask = with_sink(query, key, value, mask, sink)
        causal = False
    key, value = repeat_heads(key, spec.groups), repeat_heads(value, spec.groups)
    if spec.softcap is None:
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, dropout_p=dropout, is_causal=causal, scale=spec.scale
        )
    scores = spec.softcap * torch.tanh(query @ key.transpose(-1, -2) * (spec.scale / spec.softcap))
    if causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if mask is None:
        weights = torch.softmax(scores, -1)
    elif mask.dtype == torch.bool:
        weights = torch.softmax(scores.masked_fill(~mask, -torch.inf), -1)
        weights = weights.masked_fill(~mask.any(-1, keepdim=True), 0.0)
    else:
        weights = torch.softmax(scores + mask, -1)
    return F.dropout(weights, dropout) @ value


def exact_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    spec: AttentionSpec,
    padding: Tensor | None = None,
    bias: Tensor | None = None,
    sink: Tensor | None = None,
    dropout: float = 0.0,
    rows: Tensor | None = None,
    queries: int | None = None,
) -> Tensor:
    """All that a spec says, of all queries or of some of them.

    Args:
        query: (B, H, n, D), n being T if these are all.
        key: (B, G, S, D).
        value: (B, G, S, E).
        spec: of the attention.
        padding: (B, S) bool, or None.
        bias: by offset, (H, 2 T - 1); or dense, broadcastable to (B, H, n, S), which carries the whole mask and is used
            as it is; or None.
        sink: (H,), or None.
        dropout: probability with which weights are dropped.
        rows: (n,) int64, which of the queries these are; None for all.
        queries: T, if these are not all.

    Returns:
        (B, H, n, E).
    """
    rest = {"spec": spec, "dropout": dropout, "sink": sink}
    if bias is not None and spec.bias == "dense":
        return attend(query, key, value, bias, **rest)  # type: ignore[arg-type]
    T = query.shape[2] if queries is None else queries
    plain = bias is None and spec.causal and not spec.windowed and spec.alignment == "start"
    if plain and padding is None and rows is None:
        return attend(query, key, value, None, causal=True, **rest)  # type: ignore[arg-type]
    given = (spec, T, key.shape[2], padding)
    if bias is None and spec.dead_rows == "zero":
        return attend(query, key, value, allowed_keys(*given, query.device, rows), **rest)  # type: ignore[arg-type]
    hiding = added_mask(*given, query, rows)
    if bias is None:
        return attend(query, key, value, hiding, **rest)  # type: ignore[arg-type]
    added = dense_bias(bias, T, padding if spec.skips_padding else None, rows).to(query.dtype)
    allowed = allowed_keys(*given, query.device, rows)
    if allowed is None or hiding is None:
        return attend(query, key, value, added, **rest)  # type: ignore[arg-type]
    mask = torch.where(allowed, added, added + hiding if spec.dead_rows == "all" else hiding)
    mixed = attend(query, key, value, mask, **rest)  # type: ignore[arg-type]
    return mixed.masked_fill(~allowed.any(-1, keepdim=True), 0.0) if spec.dead_rows == "zero" else mixed


# Of one token: keys that stay in cache are read by each of few heads again faster than heads are made rows, since there
# are more heads than key/value heads to spread over threads.
NEAR, FEW = 4096, 3


@dataclass(frozen=True)
class SoftmaxConfig(MixerConfig):
    """Keep the attention's meaning, in one exact form. Has no options."""


@register("softmax")
class Softmax(Mixer):
    """The pretrained attention itself as one canonical operator: P = softmax(scale * Q K^T + mask)."""

    Config = SoftmaxConfig
    of_tokens = ("exist",)
    writes_of_tokens = False
    steps_several = True

    def __init__(self, spec: AttentionSpec, config: SoftmaxConfig | None = None) -> None:
        super().__init__(spec, config or SoftmaxConfig())
        masks = {"none": ("padding",), "offset": ("padding", "bias"), "dense": ("bias",)}
        sink = ("sink",) if spec.sink else ()
        self._rows = replace(spec, heads=spec.kv_heads)  # of a step, whose heads that share keys become rows
        self.operands = ("query", "key", "value", *masks[spec.bias], *sink)

    @classmethod
    def supports(cls, spec: AttentionSpec, config: SoftmaxConfig) -> Unsupported | None:
        """Every attention that was understood."""
        return None

    @property
    def order(self) -> Order:
        """Quadratic: every query meets every key."""
        return "n^2"

    def flops(self, tokens: int) -> float:
        """See Mixer.flops: of the pairs that a mask leaves."""
        left, right = self.spec.window
        right = 0 if self.spec.causal else right
        pairs = sum(_seen(tokens, side) for side in (left, right)) + tokens
        return 2.0 * self.spec.heads * pairs * (self.spec.head_dim + self.spec.value_dim)

    def forward(
        self,
        query: Tensor | None = None,
        key: Tensor | None = None,
        value: Tensor | None = None,
        *,
        padding: Tensor | None = None,
        bias: Tensor | None = None,
        source: Tensor | None = None,
        sink: Tensor | None = None,
    ) -> Tensor:
        """See Mixer.forward. A dense bias carries the whole mask and is used as it is; sink is (H,)."""
        assert query is not None
        assert key is not None
        assert value is not None
        dropout = self.spec.dropout if self.training else 0.0
        return exact_attention(
            query, key, value, spec=self.spec, padding=padding, bias=bias, sink=sink, dropout=dropout
        )

    def initial_state(self, batch: int, length: int, like: Tensor) -> State:
        """See Mixer.initial_state: no key yet, of a window as many as it reaches back to, which don't exist.

        Raises:
            NoStepError: the attention is not causal, or has a dense bias.
        """
        return empty_cache(self.spec, batch, like)

    def step(
        self,
        state: State,
        query: Tensor | None = None,
        key: Tensor | None = None,
        value: Tensor | None = None,
        *,
        padding: Tensor | None = None,
        bias: Tensor | None = None,
        source: Tensor | None = None,
        sink: Tensor | None = None,
    ) -> tuple[Tensor, State]:
        """See Mixer.step; also for several tokens at once. Time and memory grow with the tokens before."""
        assert query is not None
        assert key is not None
        assert value is not None
        spec, T = self.spec, query.shape[2]
        whole = extended(state, key, value, padding)
        mask = seen_in_cache(spec, whole, T, bias, query)
        if sink is None and spec.groups > 1 and T == 1:
            mixed = self._one_query(query, whole["key"], whole["value"], mask)
        else:
            mixed = attend(query, whole["key"], whole["value"], mask, spec=spec, sink=sink)
        return mixed, kept_in_cache(spec, whole)

    def _one_query(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """Attention of one token, (B, H, 1, E), whose heads share keys: nothing is repeated."""
        spec = self.spec
        near = key.shape[2] <= NEAR and spec.groups <= FEW
        if near and mask is None and spec.softcap is None and plain_inference(query):
            return F.scaled_dot_product_attention(query, key, value, scale=spec.scale, enable_gqa=True)
        rows = query.unflatten(1, (spec.kv_heads, -1)).flatten(2, 3)  # the heads of a key become rows
        if mask is not None and mask.shape[1] > 1:
            mask = mask.unflatten(1, (spec.kv_heads, -1)).flatten(2, 3)
        return attend(rows, key, value, mask, spec=self._rows).unflatten(2, (-1, 1)).flatten(1, 2)

    def state_after(self, length: int, **operands: Tensor | None) -> State:
        """See Mixer.state_after."""
        key, value = operands["key"], operands["value"]
        assert key is not None
        assert value is not None
        empty = self.initial_state(value.shape[0], length, value)
        return kept_in_cache(self.spec, extended(empty, key, value, operands.get("padding")))

    def reference(
        self,
        query: Tensor | None = None,
        key: Tensor | None = None,
        value: Tensor | None = None,
        *,
        padding: Tensor | None = None,
        bias: Tensor | None = None,
        source: Tensor | None = None,
        sink: Tensor | None = None,
    ) -> Tensor:
        """One query at a time over a list of the keys it may see."""
        assert query is not None
        assert key is not None
        assert value is not None
        spec = self.spec
        key, value = repeat_heads(key, spec.groups), repeat_heads(value, spec.groups)
        (B, H, T, _), S = query.shape, key.shape[2]
        left, right = spec.window
        places = torch.arange(S).expand(B, S) if padding is None or not spec.skips_padding else existing_places(padding)
        rows = []
        for b in range(B):
            for t in range(T):
                place = t + S - T if spec.alignment == "end" else t
                first = 0 if left is None else max(0, place - left)
                last = S - 1 if right is None else min(S - 1, place + right)
                last = min(S - 1, place) if spec.causal else last
                gone = spec.pads_queries and padding is not None and not padding[b, t]
                exist = [s for s in range(S) if not gone and (padding is None or bool(padding[b, s]))]
                seen = [s for s in exist if first <= s <= last]
                if spec.bias == "dense":
                    seen = list(range(S))
                elif not seen and spec.dead_rows in ("mean", "existing") and sink is None:
                    met = exist if exist and spec.dead_rows == "existing" else list(range(S))
                    rows.append(value[b, :, met].mean(1))
                    continue
                elif not seen and spec.dead_rows in ("past", "once"):
                    near, past = range(first, last + 1), range(last + 1)
                    once = [s for s in range(S) if (s in near) != (s in exist)]
                    once = [s for s in once if s in past] if spec.dead_rows == "past" else once
                    rows.append(value[b, :, once].mean(1))
                    continue
                elif not seen and spec.dead_rows == "all":
                    seen = list(range(S))
                scores = spec.scale * (key[b, :, seen] @ query[b, :, t, :, None])[..., 0]
                if spec.softcap is not None:
                    scores = spec.softcap * torch.tanh(scores / spec.softcap)
                if bias is not None and spec.bias == "offset":
                    scores = scores + bias[:, places[b, seen] - places[b, t] + T - 1]
                elif bias is not None:
                    whole = bias.broadcast_to(B, H, T, S)[b, :, t]
                    scores = scores.masked_fill(~whole, -torch.inf) if whole.dtype == torch.bool else scores + whole
                if sink is not None:
                    weights = torch.softmax(torch.cat([scores, sink[:, None]], 1), -1)[:, :-1]
                else:
                    weights = torch.softmax(scores, -1) if seen else scores
                rows.append((weights[..., None] * value[b, :, seen]).sum(1))
        return torch.stack(rows).view(B, T, H, -1).transpose(1, 2)


def _seen(tokens: int, side: int | None) -> float:
    """How many pairs of different tokens there are to one side, no more than so far apart."""
    reach = tokens - 1 if side is None else min(side, tokens - 1)
    return reach * tokens - reach * (reach + 1) / 2
