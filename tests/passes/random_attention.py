"""The attention that a description says."""

import torch
import torch.nn.functional as F
from torch import nn

WIDTH = 16


class Random(nn.Module):
    """The attention that was drawn, behind projections of its own."""

    def __init__(self, drawn):
        super().__init__()
        self.drawn, d = drawn, drawn
        self.query = nn.Linear(WIDTH, d.heads * d.size)
        self.key, self.value = nn.Linear(WIDTH, d.kv_heads * d.size), nn.Linear(WIDTH, d.kv_heads * d.value_size)
        self.other = nn.Linear(WIDTH, d.size)
        self.table, self.factors = nn.Parameter(torch.randn(d.heads, 9)), nn.Parameter(torch.rand(d.heads, 1, 1) + 1)
        self.dropout = nn.Dropout(d.dropout)

    def forward(self, x, keep):
        d, edits = self.drawn, self.drawn.edits
        query, key, value = (
            layer(x).unflatten(-1, (heads, -1)).transpose(1, 2)
            for layer, heads in ((self.query, d.heads), (self.key, d.kv_heads), (self.value, d.kv_heads))
        )
        if "query and key exchanged" in edits and d.groups == 1:
            query, key = key, query
        if "key and value exchanged" in edits:
            key, value = value, key
        if d.scale == "before":
            query = query * d.size**-0.5
        if d.scale == "split":
            query, key = query * d.size**-0.25, key * d.size**-0.25
        extra = []
        if d.layout == "fused":
            seen, bias = self.seen(x, keep), self.bias(x)
            mask = seen
            if bias is not None:
                mask = bias if seen is None else bias.masked_fill(~seen, -torch.inf)
            if "key viewed" in edits:
                key = key.reshape(*key.shape[:2], -1, key.shape[2]).transpose(-1, -2)
            result = F.scaled_dot_product_attention(
                query, self.repeated(key), self.repeated(value), attn_mask=mask,
                dropout_p=d.dropout * self.training, scale=None if d.scale == "none" else 0.3,
            )  # fmt: skip
        else:
            scores = self.masked(self.scores(query, key, x), x, keep, query, extra)
            weights = self.weights(scores, extra)
            result = self.mixed(weights, value)
        if "query written" in edits:
            extra.append(query.mul_(2.0))
        if "key written" in edits:
            extra.append(key[..., 0].add_(1.0))
        return result, extra

    def repeated(self, x):
        B, G, S, D = x.shape
        groups = self.drawn.groups
        if groups == 1 or (self.drawn.grouping == "broadcast" and G == 1 and self.drawn.layout == "matmul"):
            return x
        if self.drawn.grouping == "interleave":
            return x.repeat_interleave(groups, dim=1)
        if self.drawn.grouping == "tiled":
            return x.repeat(1, groups, 1, 1)
        return x[:, :, None, :, :].expand(B, G, groups, S, D).reshape(B, G * groups, S, D)

    def scores(self, query, key, x):
        """(B, H, T, S), or (B * H, T, S) by bmm, or (B, G, groups, T, S)."""
        d = self.drawn
        if d.layout == "five":
            query = query.unflatten(1, (d.kv_heads, d.groups))
            return query @ key[:, :, None].transpose(-1, -2)
        key = self.repeated(key)
        if "key viewed" in d.edits:
            turned = key.reshape(*key.shape[:2], key.shape[3], key.shape[2])
        else:
            turned = key.transpose(-1, -2)
        if d.layout in ("bmm", "baddbmm"):
            query, turned = query.flatten(0, 1), turned.flatten(0, 1)
        if d.layout == "baddbmm":
            alpha = d.size**-0.5 if d.scale == "alpha" else 1.0
            added = torch.zeros(query.shape[0], x.shape[1], x.shape[1])
            return torch.baddbmm(added, query, turned, beta=0.5, alpha=alpha)
        if d.layout == "einsum":
            return torch.einsum("bhtd,bhds->bhts", query, turned)
        return torch.bmm(query, turned) if d.layout == "bmm" else query @ turned

    def masked(self, scores, x, keep, query, extra):
        d, edits = self.drawn, self.drawn.edits
        seen, bias = self.laid_out(self.seen(x, keep), self.bias(x), x)
        if "scores written" in edits:
            scores.diagonal(dim1=-2, dim2=-1).add_(1.0)
        if "scores read" in edits:
            extra.append(scores.mean())
        if scores.dim() == 4:
            scores = self.with_terms(scores, x, query)
        if "relu" in edits:
            scores = torch.relu(scores)
        if "scores exchanged" in edits:
            scores = scores.transpose(-1, -2)
        if d.fill == "added first" and bias is not None:
            scores = scores + bias
        scores = self.scaled(scores)
        if d.softcap is not None:
            scores = d.softcap * torch.tanh(scores / d.softcap)
        if "shifted" in edits:
            scores = scores + 1.5
        if bias is not None and d.fill != "added first":
            scores = scores + bias
        return self.filled(scores, seen)

    def scaled(self, scores):
        size = self.drawn.size
        if self.drawn.scale == "after":
            return scores * size**-0.5
        return scores / size**0.5 if self.drawn.scale == "divided" else scores

    def laid_out(self, seen, bias, x):
        d, shape = self.drawn, (x.shape[0], self.drawn.heads, x.shape[1], x.shape[1])
        if d.layout in ("bmm", "baddbmm"):
            return (None if m is None else m.expand(shape).reshape(-1, *shape[2:]) for m in (seen, bias))
        if d.layout == "five":
            seen = None if seen is None else seen.expand(-1, -1, x.shape[1], -1)[:, :, None]
            bias = None if bias is None else bias.unflatten(1, (d.kv_heads, d.groups))
        return seen, bias

    def with_terms(self, scores, x, query):
        edits = self.drawn.edits
        if "a factor" in edits:
            scores = scores * self.factors
        if "a factor of the query" in edits:
            scores = scores * query[..., :1].sigmoid()
        if "a term of the query" in edits:
            scores = scores + query @ self.other(x)[:, None].transpose(-1, -2)
        return scores

    def filled(self, scores, seen):
        hidden = 0.0 if "filled with zero" in self.drawn.edits else self.drawn.hidden
        if seen is None:
            return scores
        if self.drawn.fill == "masked_fill":
            return scores.masked_fill(~seen, hidden)
        if self.drawn.fill == "where":
            return torch.where(seen, scores, hidden)
        if self.drawn.fill == "where not":
            return torch.where(~seen, torch.full((), hidden), scores)
        return scores + torch.zeros(seen.shape).masked_fill(~seen, hidden)

    def weights(self, scores, extra):
        edits = self.drawn.edits
        if "largest subtracted" in edits:
            scores = scores - scores.amax(-1, keepdim=True)
        if "scores dropped" in edits:
            scores = self.dropout(scores)
        if "softmax twice" in edits:
            scores = torch.softmax(scores, -1)
        dim = -2 if "softmax over queries" in edits else -1
        weights = torch.softmax(scores, dim, dtype=torch.float32 if self.drawn.cast else None)
        weights = self.dropout(weights.to(scores.dtype))
        if "weights read" in edits:
            extra.append(weights.mean())
        if "weights scaled" in edits:
            weights = weights * 1.5
        if "weights gated" in edits:
            weights = weights * torch.sigmoid(scores)
        if "heads turned" in edits:
            weights = weights.roll(1, 1)
        if "mean of heads" in edits:
            weights = weights.mean(1, keepdim=True).expand(weights.shape)
        if "values from the left" in edits:
            weights = weights.transpose(-1, -2)
        return weights

    def mixed(self, weights, value):
        d = self.drawn
        if d.layout == "five":
            return (weights @ value[:, :, None]).flatten(1, 2)
        value = self.repeated(value)
        if d.layout in ("bmm", "baddbmm"):
            return torch.bmm(weights, value.flatten(0, 1)).view(-1, d.heads, *value.shape[2:])
        return torch.einsum("bhts,bhse->bhte", weights, value) if d.layout == "einsum" else weights @ value

    def seen(self, x, keep):
        """(B or 1, 1, T or 1, S) bool: which keys may be seen, or None."""
        T = x.shape[1]
        offset = torch.arange(T) - torch.arange(T)[:, None]
        every = torch.ones(T, T, dtype=torch.bool)
        kinds = {
            "tril": every.tril(),
            "triu": ~every.triu(1),
            "compared": torch.arange(T)[None] <= torch.arange(T)[:, None],
            "window": offset.abs() <= 3,
            "causal window": (offset <= 0) & (offset > -5),
            "padding": keep[:, None, None, :],
            "tail": offset >= -2,
        }
        found = None
        for kind in self.drawn.sights:
            seen = kinds[kind] if kinds[kind].dim() == 4 else kinds[kind][None, None]
            found = seen if found is None else found & seen
        return found

    def bias(self, x):
        """(1, H, T, S), or None."""
        kind, T = self.drawn.bias, x.shape[1]
        offset = torch.arange(T) - torch.arange(T)[:, None]
        if kind == "none":
            return None
        if kind == "slopes":
            return (offset.abs() * -self.factors)[None]
        if kind == "dense":
            return self.table[:, (torch.arange(T) * 3 + torch.arange(T)[:, None]) % 9][None]
        return self.table[:, offset.clamp(-4, 4) + 4][None] * (300.0 if kind == "large" else 1.0)
