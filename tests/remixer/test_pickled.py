import copy
import io
import pickle

import pytest
import torch
from torch import nn

import remixer
from remixer import LongShort
from remixer.distillation.errors import TransferError
from remixer.testing import assert_order


class Tied(nn.Module):
    """Dropout, one weight under two nested names, and a buffer that isn't saved."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.layers, self.dropout = model.layers[:1], nn.Dropout(0.5)
        self.ends = nn.ModuleDict({"first": nn.Linear(32, 32, bias=False), "last": nn.Linear(32, 32, bias=False)})
        self.ends["last"].weight = self.ends["first"].weight
        self.register_buffer("shift", torch.ones(32), persistent=False)

    def forward(self, x, padding=None):
        x = self.dropout(self.ends["first"](x)) + self.shift
        return {"states": self.ends["last"](self.layers[0](x, padding))}


def loaded(module):
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def unpickled(module):
    return pickle.loads(pickle.dumps(module))


@pytest.mark.parametrize("through", [loaded, unpickled])
def test_a_pickle_holds_the_whole_module(model, inputs, through):
    small = remixer.remix(Tied(model), LongShort(window=4), inputs)
    small.dropout.eval()
    twin = through(small)
    assert isinstance(twin, remixer.Remixed)
    assert twin.code == small.code
    assert twin.report == small.report
    assert twin.state_dict().keys() == small.state_dict().keys()
    assert twin.get_parameter("ends.last.weight") is twin.get_parameter("ends.first.weight")
    assert twin.training
    assert not twin.dropout.training
    small.train()
    twin.train()
    x = {"x": torch.randn(3, 17, 32), "padding": torch.ones(3, 17, dtype=torch.bool)}
    for one in (twin, copy.deepcopy(twin), through(twin)):
        assert_runs_alike(one, small, x)
    with torch.no_grad():
        small.get_parameter("ends.first.weight").zero_()
    assert not torch.equal(small.eval()(**x)["states"], twin.eval()(**x)["states"])


def assert_runs_alike(twin, small, x):
    gradients = []
    for module in (twin, small):
        torch.manual_seed(1)
        module.zero_grad()
        module(**x)["states"].square().sum().backward()
        gradients.append({name: parameter.grad for name, parameter in module.named_parameters()})
    assert gradients[0].keys() == gradients[1].keys()
    assert all(torch.equal(grad, gradients[1][name]) for name, grad in gradients[0].items())


def test_what_a_pickle_does_not_hold_is_told(model, inputs):
    twin = loaded(remixer.remix(Tied(model), LongShort(window=4), inputs))
    assert twin.original is None
    with pytest.raises(TransferError, match="no longer knows the one it was made from: it was pickled"):
        remixer.transfer(twin, [inputs], steps=1)
    for module in (twin, copy.deepcopy(twin)):
        with pytest.raises(
            remixer.CaptureError, match=r"comes from a pickle, .* Rewrite the model that it was made from"
        ):
            assert_order(module, "n")
