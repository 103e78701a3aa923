"""The product with gradients of its own, against the dense matrix and autograd."""

import pytest
import torch

import remixer.mixers.toeplitz_gradients as module
from remixer.mixers import AttentionSpec, Toeplitz, ToeplitzMixer
from remixer.mixers.convolution import toeplitz_reference
from remixer.mixers.toeplitz_gradients import product_in_training
from remixer.testing import assert_close

CASES = [(T, C, E) for T in (1, 2, 9, 33) for C, E in ((3, 3), (1, 3), (3, 1), (1, 1), (17, 17), (40, 40))]


def operands(T, causal, C=3, E=3, B=2, dtype=torch.float64):
    """Four heads read two value heads."""
    generator = torch.Generator().manual_seed(T)
    shapes = (4, C, T if causal else 2 * T - 1), (B, 2, T, E)
    return [torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for shape in shapes]


@pytest.fixture(autouse=True, params=[False, True], ids=["torch", "compiled"])
def compiled(monkeypatch, request):
    """Two value heads are enough work for one thread."""
    if not request.param:
        monkeypatch.setattr(module, "trainable_in_c", lambda *operands: False)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield request.param
    torch.set_num_threads(threads)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("T", "C", "E"), CASES)
@pytest.mark.parametrize("pieces", [1, 2])
def test_values_and_gradients_are_those_of_the_dense_matrix(T, C, E, causal, pieces, monkeypatch):
    if pieces > 1:
        monkeypatch.setattr(module, "ENTRIES_AT_ONCE", 1)
    coefficients, values = operands(T, causal, C, E)
    fast = product_in_training(coefficients, values, causal)
    slow = toeplitz_reference(coefficients, values.expand(-1, -1, -1, max(C, E)), causal)
    assert_close(fast, slow)
    weight = torch.randn_like(slow)
    assert_close(*(torch.autograd.grad((each * weight).sum(), (coefficients, values)) for each in (fast, slow)))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("which", [0, 1])
def test_one_gradient_alone(which, causal):
    leaves = operands(7, causal)
    leaves[1 - which].requires_grad_(False)
    fast, slow = (
        torch.autograd.grad(product(*leaves, causal).square().sum(), leaves[which])
        for product in (product_in_training, toeplitz_reference)
    )
    assert_close(fast, slow)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("C", "E"), [(3, 3), (1, 3), (3, 1)])
def test_gradients_of_gradients(C, E, causal):
    leaves = operands(5, causal, C, E)
    assert torch.autograd.gradcheck(lambda *each: product_in_training(*each, causal), leaves)
    assert torch.autograd.gradgradcheck(lambda *each: product_in_training(*each, causal), leaves)


def behind(tensor):
    """The names of all that autograd would run."""
    stack, names = [tensor.grad_fn], set()
    while stack:
        if (node := stack.pop()) is not None and node not in names:
            names.add(node)
            stack += [inner for inner, _ in node.next_functions]
    return {node.name() for node in names}


@pytest.mark.parametrize("normalise", [False, True])
def test_mixers_train_by_it(normalise, compiled):
    spec = AttentionSpec(heads=4, kv_heads=2, head_dim=3, value_dim=3, scale=1.0, source_dim=12)
    mixer = ToeplitzMixer(spec, Toeplitz(normalise=normalise))
    name = "CompiledProductBackward" if compiled else "ToeplitzProductBackward"
    assert name in behind(mixer(value=torch.randn(1, 2, 300, 3)))


def test_float32_is_as_exact_as_float64_within_the_tolerance():
    double = operands(300, False)
    single = [each.detach().float().requires_grad_() for each in double]
    exact, found = (
        torch.autograd.grad(product_in_training(*leaves, False).square().sum(), leaves) for leaves in (double, single)
    )
    for want, got in zip(exact, found, strict=True):
        assert_close(got / want.abs().max().float(), (want / want.abs().max()).float())
