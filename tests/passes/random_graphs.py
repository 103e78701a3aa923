"""Descriptions of graphs that are attention, or nearly, drawn at random."""

from dataclasses import dataclass

import torch
from hypothesis import strategies as st

LAYOUTS = ("matmul", "bmm", "baddbmm", "einsum", "five", "fused")
GROUPINGS = ("expand", "interleave", "broadcast", "tiled")
SCALES = ("none", "after", "divided", "before", "split", "alpha")
SIGHTS = ("tril", "triu", "compared", "window", "causal window", "padding", "tail")
BIASES = ("none", "table", "slopes", "dense", "large")
FILLS = ("masked_fill", "where", "where not", "added", "added first")
EDITS = (
    "softmax over queries", "a factor", "a factor of the query", "weights read", "scores read", "a term of the query",
    "weights scaled", "weights gated", "scores written", "softmax twice", "scores dropped", "heads turned",
    "relu", "query and key exchanged", "key and value exchanged", "key viewed", "key written", "query written",
    "filled with zero", "shifted", "largest subtracted", "mean of heads", "values from the left", "scores exchanged",
)  # fmt: skip
FUSED = ("query and key exchanged", "key and value exchanged", "key viewed", "key written", "query written")


@dataclass(frozen=True)
class Drawn:
    """One graph: what it is, how it is spelled, and what was changed."""

    layout: str
    kv_heads: int
    groups: int
    size: int
    value_size: int
    grouping: str
    scale: str
    sights: tuple[str, ...]
    fill: str
    hidden: float
    bias: str
    cast: bool
    softcap: float | None
    dropout: float
    edits: tuple[str, ...]

    @property
    def heads(self):
        return self.kv_heads * self.groups


@st.composite
def graphs(draw, edited):
    layout = draw(st.sampled_from(LAYOUTS))
    kv_heads = draw(st.sampled_from([1, 2, 3]))
    size = draw(st.sampled_from([4, 8]))
    possible = FUSED if layout == "fused" else EDITS
    return Drawn(
        layout,
        kv_heads,
        draw(st.sampled_from([1, 2, 4])),
        size,
        size if edited else draw(st.sampled_from([size, 6])),
        draw(st.sampled_from(GROUPINGS if kv_heads == 1 else [g for g in GROUPINGS if g != "broadcast"])),
        draw(st.sampled_from(SCALES)),
        tuple(draw(st.lists(st.sampled_from(SIGHTS), unique=True, max_size=2))),
        draw(st.sampled_from(FILLS)),
        draw(st.sampled_from([-torch.inf, -1e9, torch.finfo(torch.float32).min, -1e4])),
        draw(st.sampled_from(BIASES)),
        draw(st.booleans()),
        draw(st.sampled_from([None, 5.0])),
        draw(st.sampled_from([0.0, 0.2])),
        tuple(draw(st.lists(st.sampled_from(possible), unique=True, min_size=1, max_size=2))) if edited else (),
    )
