"""Retrieval one token at a time: all tokens are kept, and a tree of their boxes that grows with them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from remixer.mixers.base import State
from remixer.mixers.eager import written
from remixer.mixers.long_short.config import LongShort
from remixer.mixers.long_short.joint_attention import hidden_score
from remixer.mixers.long_short.retrieval import Tree, both_signs, search, tree_memory
from remixer.mixers.precision import at_least_float32
from remixer.mixers.spec import AttentionSpec


@dataclass(frozen=True)
class Library:
    """Reads and writes what a causal Long-Short mixer with retrieval keeps of all tokens.

    Attributes:
        spec: of the attention that is replaced.
        config: of the mixer.
    """

    spec: AttentionSpec
    config: LongShort

    def initial_state(self, batch: int, length: int, like: Tensor) -> State:
        """See Mixer.initial_state: grows with the length, since any token may be asked for again."""
        G, D, E, dtype = self.spec.kv_heads, self.spec.head_dim, self.spec.value_dim, at_least_float32(like.dtype)
        nodes = sum(tree_memory(-(-length // self.config.segment), self.config.retrieve).sizes)
        chosen = like.new_zeros(batch, G, self.config.retrieve, dtype=torch.int64)
        return {
            "all_key": like.new_zeros(batch, G, length, D),
            "all_value": like.new_zeros(batch, G, length, E),
            "all_place": like.new_full((batch, length), -1, dtype=torch.int64),
            "boxes": like.new_full((batch, G, nodes, 2 * D), torch.finfo(dtype).min, dtype=dtype),
            "box_count": like.new_zeros(batch, nodes, dtype=torch.int64),
            "chosen": chosen,
            "chosen_there": chosen.bool(),
            "has_chosen": like.new_zeros(batch, dtype=torch.bool),
        }

    def take_in(self, state: State, query: Tensor, key: Tensor, value: Tensor, exists: Tensor, place: Tensor) -> State:
        """The state with a token, and with its choice if it is the first of its block that exists.

        Args:
            state: with the time of the token.
            query: (B, H, 1, D).
            key: (B, G, 1, D), normed.
            value: (B, G, 1, E), normed.
            exists: (B,) bool.
            place: (B,), see Stream.
        """
        state, config, time = dict(state), self.config, state["time"]
        at = time.view(1)
        state["all_key"] = written(state["all_key"], 2, at, key)
        state["all_value"] = written(state["all_value"], 2, at, value)
        state["all_place"] = written(state["all_place"], 1, at, torch.where(exists, place, -1)[:, None])
        memory = tree_memory(-(-state["all_key"].shape[2] // config.segment), config.retrieve)
        starts = [sum(memory.sizes[:level]) for level in range(memory.levels)]
        levels = torch.arange(memory.levels, device=time.device)
        node = ((time // config.segment) >> levels) + torch.tensor(starts, device=time.device)
        box, count = state["boxes"].index_select(2, node), state["box_count"].index_select(1, node)
        larger = torch.where(exists[:, None, None, None], torch.maximum(box, both_signs(key)), box)
        state["boxes"] = written(state["boxes"], 2, node, larger)
        state["box_count"] = written(state["box_count"], 1, node, count + exists[:, None])
        first = time - time % config.retrieve_block
        asks = exists & ~(state["has_chosen"] & (time != first))
        rows = query.unflatten(1, (self.spec.kv_heads, -1)).transpose(2, 3)  # (B, G, 1, groups, D)
        asking = asks[:, None, None, None].expand(*rows.shape[:-1])
        tree = Tree(state["boxes"], state["box_count"], memory)
        found = search(tree, rows, asking, first.view(1), spec=self.spec, config=config)
        kept = state["chosen_there"] & (state["has_chosen"] & (time != first))[:, None, None]
        mine = asks[:, None, None]
        state["chosen"] = torch.where(mine, found[0][:, :, 0], state["chosen"])
        state["chosen_there"] = torch.where(mine, found[1][:, :, 0], kept)
        state["has_chosen"] = asks | (state["has_chosen"] & (time != first))
        return state

    def tokens(self, state: State) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The chosen tokens: keys (B, G, columns, D), values, which exist, and their places (B, G, columns)."""
        segment, T = self.config.segment, state["all_key"].shape[2]
        position = (state["chosen"][..., None] * segment + torch.arange(segment, device=state["time"].device)).flatten(
            2
        )
        token = position.clamp(max=T - 1)
        B, G = token.shape[:2]
        place = state["all_place"][torch.arange(B, device=token.device).view(B, 1, 1), token]
        seen = state["chosen_there"].repeat_interleave(segment, -1) & (position < T) & (place >= 0)
        if "sink_time" in state:
            seen = seen & (token[..., None] != state["sink_time"][:, None, None]).all(-1)
        index = token[..., None].expand(B, G, -1, -1)
        key = state["all_key"].gather(2, index.expand(-1, -1, -1, state["all_key"].shape[3]))
        value = state["all_value"].gather(2, index.expand(-1, -1, -1, state["all_value"].shape[3]))
        return key, value, seen, place

    def share_left(self, state: State, held: Tensor) -> Tensor:
        """What is added to the scores of summaries that no longer stand for the chosen tokens.

        Args:
            state: with the choice.
            held: (L, ring), the nodes of each level that are kept.

        Returns:
            (B, G, L * ring).
        """
        index = state["chosen"].clamp(max=state["box_count"].shape[1] - 1).flatten(1)
        many = state["box_count"].gather(1, index).view_as(state["chosen"]) * state["chosen_there"]
        levels = torch.arange(held.shape[0], device=held.device)
        inside = (state["chosen"][..., None] >> levels)[..., None] == held  # (B, G, retrieve, L, ring)
        behind = state["count"][:, None]
        left = (behind - (many[..., None, None] * inside).sum(2)).clamp(min=0)
        dtype = state["boxes"].dtype
        share = (left.clamp(min=1).to(dtype) / behind.clamp(min=1)).log()
        return share.masked_fill(left == 0, hidden_score(dtype)).flatten(2)
