"""Reading an attention's operands at the edges of its two products: layouts, grouped heads, projections."""

from __future__ import annotations

from operator import attrgetter
from typing import Any

import torch
from torch import fx, nn

from remixer.passes.layouts import heads_of
from remixer.passes.scores import PRODUCTS
from remixer.passes.sites import Site
from remixer.rewrite.editor import Editor
from remixer.rewrite.effects import storages_of
from remixer.rewrite.match import Match, Miss
from remixer.rewrite.pattern import Pattern, Recorder
from remixer.rewrite.program import shape_of

aten = torch.ops.aten

# The operators of repeated heads: stretched without a copy, copied, merged.
STRETCHES = (aten.expand.default, aten.expand_as.default, aten.broadcast_to.default)
COPIES = (aten.contiguous.default, aten.clone.default)
RESHAPES = (aten.reshape.default, aten.view.default, aten._unsafe_view.default, aten.flatten.using_ints)
# Operators with weights, other than `linear`, that may make keys of hidden states.
_PROJECTIONS = {
    aten.addmm.default,
    aten.mm.default,
    aten.conv1d.default,
    aten.conv2d.default,
    aten.convolution.default,
    aten.embedding.default,
    aten.scaled_dot_product_attention.default,
}
# Where the weight stands among the operands of a projection.
_WEIGHTS: dict[Any, int] = {aten.linear.default: 1, aten.mm.default: 1, aten.addmm.default: 2}
_PRODUCTS = {*PRODUCTS, aten.baddbmm.default, aten.einsum.default}


def grouped(p: Recorder, name: str) -> Pattern:
    """A key or value, (B, H, S, D), that may be (B, G, S, D) repeated for the query heads of each group.

    The match has `name` for what is repeated and `name_whole` for the result; `key_and_value` decides
    between them.
    """
    one = p.tensor(name)
    inserted = p.call(aten.unsqueeze.default, one, 2, shared=True)
    stretched = p.call(STRETCHES, inserted, p.any(""), rest=True, shared=True)
    copied = p.through(stretched, [p.step(COPIES)], f"{name}_copies")
    repeated = p.call(RESHAPES, copied, p.any(""), rest=True, shared=True)
    interleaved = p.call(aten.repeat_interleave.self_int, one, p.constant(""), 1, rest=True, shared=True)
    only = p.call(STRETCHES, one, p.any(""), rest=True, shared=True)
    return p.either(f"{name}_whole", repeated=repeated, interleaved=interleaved, only=only, plain=one)


def key_and_value(match: Match) -> tuple[fx.Node, fx.Node]:
    """The nodes that both forms start from, with each head once where both the key and the value are repeated.

    Heads stand in the second dimension, whether the key is exchanged or not.
    """
    read = "layout" not in match.tags or _exchanged(match)
    key, value = _once(match, "key") if read else match["layout"], _once(match, "value")
    if heads_of(key) == heads_of(value):
        return key, value
    return match["key_whole" if read else "layout"], match["value_whole"]


def head_counts(query: fx.Node, key: fx.Node, value: fx.Node, root: fx.Node) -> tuple[int, int] | Miss:
    """H and G of an attention's operands, or why they don't go together."""
    heads, kv_heads, value_heads = (heads_of(operand) for operand in (query, key, value))
    if isinstance(heads, Miss):
        return heads
    if isinstance(kv_heads, Miss):
        return kv_heads
    if value_heads != kv_heads or heads % kv_heads:
        return Miss(f"{heads} query heads on {kv_heads} key and {value_heads} value heads", root)
    return heads, kv_heads


def _once(match: Match, name: str) -> fx.Node:
    """The key or value with each head once, where the shapes prove that the rest is repetition."""
    whole, one = match[f"{name}_whole"], match[name]
    if match.tag(f"{name}_whole") == "plain":
        return whole
    outer, inner = shape_of(whole), shape_of(one)
    repeats = (
        outer is not None
        and inner is not None
        and len(outer) == len(inner) == 4
        and (outer[0], outer[2], outer[3]) == (inner[0], inner[2], inner[3])
        and outer[1].is_Integer
        and inner[1].is_Integer
        and outer[1] % inner[1] == 0
    )
    return one if repeats else whole


def transposed(p: Recorder, name: str) -> Pattern:
    """A key of which the last two dimensions were exchanged; see `untransposed`."""
    inner = p.call(aten.transpose.int, grouped(p, name), p.constant("dim0"), p.constant("dim1"), shared=True)
    short = p.call([aten.mT.default, aten.adjoint.default], grouped(p, name), shared=True)
    return p.either("layout", exchanged=inner, short=short, plain=p.tensor(""))


def _exchanged(match: Match) -> bool:
    if match.tag("layout") == "plain":
        return False
    if match.tag("layout") == "short":
        return True
    rank = len(shape_of(match["key_whole"]) or ())
    return {match["dim0"] % rank, match["dim1"] % rank} == {rank - 1, rank - 2}


def untransposed(match: Match, editor: Editor) -> fx.Node:
    """The key as (B, G, S, D), or (B', S, D): read through the exchange, or exchanged once more."""
    key, _ = key_and_value(match)
    return key if _exchanged(match) else editor.call(aten.transpose.int, key, -1, -2, before=match.root)


def hidden_state(key: fx.Node, graph_module: fx.GraphModule) -> fx.Node | None:
    """The (B, S, C) tensor that a key's projection reads, if there is one such and it is an `nn.Linear`'s.

    Walks back from the key through what is no projection: head splits, rotary embeddings, norms of heads.
    """
    shape = shape_of(key)
    found: set[fx.Node] = set()
    seen: set[fx.Node] = set()
    stack = [key]
    while stack:
        node = stack.pop()
        if node in seen or node.op != "call_function":
            continue
        seen.add(node)
        if node.target is aten.linear.default:
            found.add(node.args[0])  # type: ignore[arg-type]
        elif node.target in _PROJECTIONS or _reads_parameter(node, graph_module):
            return None
        else:
            stack.extend(node.all_input_nodes)
    if len(found) != 1 or shape is None:
        return None
    state = found.pop()
    state_shape: Any = shape_of(state)
    if state_shape is None or len(state_shape) != 3 or state_shape[1] != shape[-2]:
        return None
    heads = heads_of(key)
    batches = (state_shape[0], state_shape[0] * heads) if isinstance(heads, int) else (state_shape[0],)
    return state if shape[0] in batches and state_shape[2].is_Integer else None


def projections(site: Site, graph_module: fx.GraphModule) -> tuple[str, ...]:
    """Names of the weights of two dimensions that make a site's operands, and of the one that reads what it gives."""
    found: dict[str, None] = {}
    seen: set[fx.Node] = set()
    stack = [site.operand(name) for name in ("query", "key", "value")]
    while stack:
        node = stack.pop()
        if node is None or node in seen or node.op != "call_function":
            continue
        seen.add(node)
        if weight := _weight(node, graph_module):
            found[weight] = None
        elif node.target not in _PROJECTIONS:
            stack.extend(node.all_input_nodes)
    reader: fx.Node | None = site.node
    while reader is not None and len(reader.users) == 1:
        reader = next(iter(reader.users))
        if weight := _weight(reader, graph_module):
            found[weight] = None
            break
        if sum(shape_of(each) is not None for each in reader.all_input_nodes) > 1:
            break
    return tuple(found)


def _weight(node: fx.Node, graph_module: fx.GraphModule) -> str:
    """The name of the weight that a product of tokens with one reads, or ""."""
    place = _WEIGHTS.get(node.target)
    weight = node.args[place] if place is not None else None
    if not isinstance(weight, fx.Node) or weight.op != "get_attr":
        return ""
    value = attrgetter(str(weight.target))(graph_module)
    return str(weight.target) if isinstance(value, nn.Parameter) and value.dim() == 2 else ""


def _reads_parameter(node: fx.Node, graph_module: fx.GraphModule) -> bool:
    """Whether a product is with a parameter; rotary embeddings multiply positions with a buffer."""
    if node.target not in _PRODUCTS:
        return False
    held = {storage for operand in node.all_input_nodes for storage in storages_of(operand)}
    return any(
        storage.op == "get_attr" and isinstance(attrgetter(str(storage.target))(graph_module), nn.Parameter)
        for storage in held
    )
