"""What one attention computes, in words that hold whatever library it came from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

Bias = Literal["none", "offset", "dense"]
DeadRows = Literal["zero", "mean", "past", "once", "existing", "all"]
Alignment = Literal["start", "end"]
ALIGNMENTS: tuple[Alignment, ...] = ("start", "end")


@dataclass(frozen=True, kw_only=True)
class AttentionSpec:
    """The meaning of one attention: softmax(scale * Q K^T, softcapped, masked, biased) V.

    Attributes:
        heads: H, number of query heads.
        kv_heads: G, number of key/value heads; G divides H, head h reads key/value head h // (H / G).
        head_dim: D, size of one query or key.
        value_dim: E, size of one value.
        scale: factor on the scores.
        causal: token t sees keys 0..t only.
        window: (left, right), how many tokens before and after itself a query sees; None is unbounded.
            A causal attention has right = 0 or None.
        padding: a (B, S) operand says which keys exist.
        pads_queries: queries that don't exist see no key; only where T = S.
        bias: "none", "offset" (one value per head and offset s - t) or "dense" (anything else).
        skips_padding: offsets of the bias count only the keys that exist, as positions from cumsum(mask) do.
        softcap: c in c * tanh(scores / c), or None.
        sink: an operand gives one score per head that takes part in every softmax and has no value, so that a
            query may attend to nothing.
        dropout: probability with which attention weights are dropped in training.
        cross: keys come from another sequence than queries; T and S are independent.
        alignment: whether the first query and key stand at the same place or, as with keys kept from earlier
            calls, the last ones. Causality and window go by it where T is not S.
        dead_rows: what a query gives that may see no key: "zero"; the "mean" of all values, which is what
            masks made of the lowest number do; the mean of those hidden "once", by place or by padding, or of
            those of the "past" hidden once, by window or by padding, which is what sums of two such masks do;
            the mean of the "existing" ones, where padding adds a lower number than what place filled in;
            or attention over "all" keys, which is what -10,000 does when it is added.
        source_dim: C, width of the hidden state that the key projection reads, or None if there is no one
            such tensor.
        dtype: of query, key and value.
    """

    heads: int
    kv_heads: int
    head_dim: int
    value_dim: int
    scale: float
    causal: bool = False
    window: tuple[int | None, int | None] = (None, None)
    padding: bool = False
    pads_queries: bool = False
    bias: Bias = "none"
    skips_padding: bool = False
    softcap: float | None = None
    sink: bool = False
    dropout: float = 0.0
    cross: bool = False
    alignment: Alignment = "start"
    dead_rows: DeadRows = "zero"
    source_dim: int | None = None
    dtype: torch.dtype = torch.float32

    @property
    def groups(self) -> int:
        """Number of query heads that share one key/value head."""
        return self.heads // self.kv_heads

    @property
    def windowed(self) -> bool:
        """Whether the pretrained attention itself sees only a window."""
        left, right = self.window
        return left is not None or (right is not None and not self.causal)

    def __str__(self) -> str:
        """In words, for reports.

        Examples:
            >>> print(AttentionSpec(heads=9, kv_heads=3, head_dim=64, value_dim=64, scale=0.125, causal=True))
            9 heads on 3 of 64, causal, scale 0.125
        """
        heads = f"{self.heads} heads" if self.groups == 1 else f"{self.heads} heads on {self.kv_heads}"
        size = f"{self.head_dim}" if self.head_dim == self.value_dim else f"{self.head_dim}/{self.value_dim}"
        words = [f"{heads} of {size}"]
        if self.cross:
            words.append("cross")
        if self.causal or not self.cross:
            words.append("causal" if self.causal else "bidirectional")
        if self.alignment == "end":
            words.append("aligned at the end")
        left, right = self.window
        if self.windowed:
            seen = [f"{left} before" if left is not None else "all before"]
            if not self.causal:
                seen.append(f"{right} after" if right is not None else "all after")
            words.append("window " + ", ".join(seen))
        if self.padding:
            words.append("padding of keys and queries" if self.pads_queries else "padding")
        if self.bias != "none":
            words.append(f"{self.bias} bias" + (" by existing keys" if self.skips_padding else ""))
        if self.softcap is not None:
            words.append(f"softcap {self.softcap:g}")
        if self.sink:
            words.append("sink")
        if self.dropout:
            words.append(f"dropout {self.dropout:g}")
        words.append(f"scale {self.scale:.4g}")
        return ", ".join(words)
