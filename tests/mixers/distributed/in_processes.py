"""What tests let each process do."""

import contextlib

import torch
import torch.distributed as dist
from torch.nn.attention import SDPBackend, sdpa_kernel

from remixer.mixers import LongShortMixer, Softmax
from remixer.mixers.distributed import Distributed, DistributedMixer
from remixer.mixers.distributed.cost import layout_of
from remixer.mixers.distributed.long_short import mix_own_tokens
from remixer.mixers.distributed.mixer import _parts, _replicated
from remixer.mixers.distributed.ranks import ranks_of
from remixer.mixers.distributed.schemes import SCHEMES, Operands, Spread


def operands_for(spec, B, T, S, padding, dtype):
    """The same in all processes."""
    torch.manual_seed(T * 7 + S)
    shapes = {
        "query": (B, spec.heads, T, spec.head_dim),
        "key": (B, spec.kv_heads, S, spec.head_dim),
        "value": (B, spec.kv_heads, S, spec.value_dim),
    }
    if spec.bias == "offset":
        shapes["bias"] = (spec.heads, 2 * T - 1)
    if spec.bias == "dense":
        shapes["bias"] = (B, spec.heads, T, S)
    if spec.sink:
        shapes["sink"] = (spec.heads,)
    found = {name: torch.randn(shape, dtype=torch.float64).to(dtype) for name, shape in shapes.items()}
    if padding != "none":
        place, hidden = torch.arange(S), [min(S - 1, S // (3 + row)) for row in range(B)]
        rows = [place >= count if padding == "left" else place < S - count for count in hidden]
        if padding == "dead":
            rows[0] = place < 0
        found["padding"] = torch.stack(rows)
    return found


def differences(spec, scheme, B, T, S, padding, dtype):
    """How far values and gradients, averaged over the processes, are from those of one process, over the largest."""
    expected, wanted = _run(Softmax(spec), spec, B, T, S, padding, dtype)
    given, found = _run(DistributedMixer(spec, Distributed(scheme)), spec, B, T, S, padding, dtype)
    for grad in found.values():
        dist.all_reduce(grad)
        grad /= dist.get_world_size()
    pairs = {"output": (given, expected), **{name: (found[name], wanted[name]) for name in wanted}}
    return {name: _relative(*pair) for name, pair in pairs.items()}


def _run(mixer, spec, B, T, S, padding, dtype):
    given = operands_for(spec, B, T, S, padding, dtype)
    leaves = {name: each for name, each in given.items() if each.is_floating_point()}
    for leaf in leaves.values():
        leaf.requires_grad_()
    # For rows that see nothing and give a mean, gradients of torch's fused kernel are too large, as often as there are
    # keys.
    exact = sdpa_kernel(SDPBackend.MATH) if spec.dead_rows != "zero" else contextlib.nullcontext()
    with exact:
        out = mixer(**given)
        torch.manual_seed(3)
        (out * torch.randn(out.shape, dtype=torch.float64).to(dtype)).sum().backward()
    return out.detach(), {
        name: torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for name, leaf in leaves.items()
    }


def _relative(got, want):
    if got.shape != want.shape:
        return float("inf")
    return float((got.double() - want.double()).abs().max() / max(1.0, float(want.double().abs().max())))


def mixer_of_all(spec, config):
    """The same in all processes, in float64 or the spec's dtype, with weights that matter."""
    torch.manual_seed(5)
    mixer = LongShortMixer(spec, config)
    for weight in mixer.parameters():
        torch.nn.init.normal_(weight, std=0.4)
    return mixer.to(spec.dtype).eval()


def long_short_operands(mixer, B, T, padding):
    """Whole operands, the same in all processes."""
    spec = mixer.spec
    given = operands_for(spec, B, T, T, padding, spec.dtype)
    if "source" in mixer.operands:
        given["source"] = torch.randn(B, T, spec.source_dim, dtype=torch.float64).to(spec.dtype)
    return given


def own_tokens(given, spread):
    """This process's part of whole operands; a padding stays whole."""
    along = {"query": 2, "key": 2, "value": 2, "source": 1}
    return {
        name: spread.part(each, along[name], spread.keys) if name in along else each for name, each in given.items()
    }


def all_long_short_differences(cases):
    """`long_short_differences` of many, by case."""
    return [(case, long_short_differences(*case)) for case in cases]


def long_short_differences(spec, config, B, T, padding):
    """How far a Long-Short mixer's values and gradients, its weights' too, are from those of one process."""
    mixer = mixer_of_all(spec, config)
    weights = dict(mixer.named_parameters())
    spread = Spread(spec, ranks_of("sequence"), "contiguous", T, T)

    def run(mix):
        given = long_short_operands(mixer, B, T, padding)
        leaves = {name: each.requires_grad_() for name, each in given.items() if each.is_floating_point()}
        mixer.zero_grad()
        out = mix(given)
        torch.manual_seed(3)
        (out * torch.randn(out.shape, dtype=torch.float64).to(out.dtype)).sum().backward()
        grads = {
            name: torch.zeros_like(leaf) if leaf.grad is None else leaf.grad.clone()
            for name, leaf in (leaves | weights).items()
        }
        return {"output": out.detach(), **grads}

    wanted = run(lambda given: mixer(**given))
    got = run(lambda given: spread.whole(mix_own_tokens(mixer, own_tokens(given, spread), spread), 2, T))
    for name, grad in got.items():
        if name != "output":
            dist.all_reduce(grad)
            grad /= dist.get_world_size()
    return {name: _relative(got[name], wanted[name]) for name in wanted}


def bytes_sent(spec, scheme, B, T, padding, dtype):
    """What this process sends in the forward and in the backward pass, its tokens being its own part already."""
    given = Operands(**operands_for(spec, B, T, T, padding, dtype))
    spread = Spread(spec, ranks_of("sequence"), layout_of(scheme, spec), T, T)
    if scheme != "replicated":
        given = _parts(given, spread)
    for each in (given.query, given.key, given.value):
        each.requires_grad_()
    with counted() as forward:
        out = _replicated(given, spread, 0.0) if scheme == "replicated" else SCHEMES[scheme](given, spread)
    with counted() as backward:
        out.sum().backward()
    return sum(forward.values()), sum(backward.values())


def without_halo(*case):
    """`long_short_differences` where neighbours send nothing but zeros."""
    from remixer.mixers.distributed import long_short

    kept = long_short.with_halo
    long_short.with_halo = lambda part, left, right, ranks: torch.nn.functional.pad(part, (0, 0, left, right))
    try:
        return long_short_differences(*case)
    finally:
        long_short.with_halo = kept


def long_short_bytes_sent(spec, config, B, T, padding):
    """Likewise, for a Long-Short mixer of the process's own tokens."""
    mixer = mixer_of_all(spec, config)
    spread = Spread(spec, ranks_of("sequence"), "contiguous", T, T)
    given = own_tokens(long_short_operands(mixer, B, T, padding), spread)
    for each in given.values():
        if each.is_floating_point():
            each.requires_grad_()
    with counted() as forward:
        out = mix_own_tokens(mixer, given, spread)
    with counted() as backward:
        out.sum().backward()
    return sum(forward.values()), sum(backward.values())


def scores_made(spec, B, T, padding, dtype):
    """How many pairs of a query and a key all_gather looks at in this process, and how many a ring."""
    from remixer.mixers.distributed import meetings

    found = []
    for scheme in ("all_gather", "ring"):
        spread, kept = Spread(spec, ranks_of("sequence"), layout_of(scheme, spec), T, T), meetings.attend_block
        found.append(0)

        def attend(query, key, *rest, kept=kept, **how):
            found[-1] += query.shape[2] * key.shape[2]
            return kept(query, key, *rest, **how)

        meetings.attend_block = attend
        try:
            SCHEMES[scheme](_parts(Operands(**operands_for(spec, B, T, T, padding, dtype)), spread), spread)
        finally:
            meetings.attend_block = kept
    return tuple(found)


@contextlib.contextmanager
def counted():
    """Bytes that this process sends, by collective."""
    ops, found = torch.ops._c10d_functional, {}
    rank, kept = dist.get_rank(), {}

    def gather(tensor, size, group):
        found["all_gather"] = found.get("all_gather", 0) + (size - 1) * tensor.nbytes
        return kept["all_gather_into_tensor"](tensor, size, group)

    def reduce(tensor, operation, size, group):
        found["reduce_scatter"] = found.get("reduce_scatter", 0) + tensor.nbytes // size * (size - 1)
        return kept["reduce_scatter_tensor"](tensor, operation, size, group)

    def exchange(tensor, received, sent, group):
        each = tensor.nbytes // max(1, len(tensor))
        found["all_to_all"] = found.get("all_to_all", 0) + each * (sum(sent) - sent[rank])
        return kept["all_to_all_single"](tensor, received, sent, group)

    def add_up(tensor, operation, group):
        size = dist.get_world_size()
        found["all_reduce"] = found.get("all_reduce", 0) + 2 * (size - 1) * tensor.nbytes // size
        return kept["all_reduce"](tensor, operation, group)

    counting = {
        "all_reduce": add_up,
        "all_gather_into_tensor": gather,
        "all_to_all_single": exchange,
        "reduce_scatter_tensor": reduce,
    }
    for name, function in counting.items():
        kept[name] = getattr(ops, name)
        setattr(ops, name, function)
    try:
        yield found
    finally:
        for name, function in kept.items():
            setattr(ops, name, function)


def with_fault(function, *args):
    """What a function gives where one process skips what it should have sent."""
    from remixer.mixers.distributed import rotation

    kept = rotation.unpacked
    rotation.unpacked = lambda flat, like: [None if each is None else each * 0 for each in kept(flat, like)]
    try:
        return function(*args)
    finally:
        rotation.unpacked = kept


def as_before_2_13(function, *args):
    """What a function gives with the operators that autograd knew before torch 2.13."""
    from remixer.mixers.distributed import collectives

    assert collectives.WITH_GRADIENTS or torch.__version__ < "2.13"
    collectives.WITH_GRADIENTS = False
    try:
        return function(*args)
    finally:
        collectives.WITH_GRADIENTS = True


def totals():
    """The gradient of a sum over processes, which all of them square."""
    from remixer.mixers.distributed.collectives import total

    part = torch.tensor([1.0 + dist.get_rank()], requires_grad=True)
    total(part, ranks_of("sequence")).square().backward()
    return float(part.grad)
