"""Linear layers in the copy for inference: what follows them in one pass, and what stays as it is."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pcdet_ext.models.layers.folding import folded
from pcdet_ext.models.layers.packed_linear import PackedLinear, plus_branch


def perceptron(channels: int = 32, hidden: int = 48) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, channels, bias=False)).eval()


def test_relu_is_taken_along_and_values_stay() -> None:
    plain, x = perceptron(), torch.randn(3, 50, 32)
    copy = folded(plain)
    assert [type(layer) for layer in copy] == [PackedLinear, nn.Identity, PackedLinear]
    assert [layer.relu for layer in copy if isinstance(layer, PackedLinear)] == [True, False]
    with torch.no_grad():
        torch.testing.assert_close(copy(x), plain(x), atol=1e-5, rtol=1e-5)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert copy(x).dtype == plain(x).dtype == torch.bfloat16
        exact = torch.randn(5, 32, dtype=torch.float64)
        torch.testing.assert_close(copy.double()(exact), plain.double()(exact))


@pytest.mark.parametrize("observed", [False, True])
def test_a_sum_with_a_branch(observed: bool) -> None:
    plain, x, seen = perceptron(), torch.randn(70, 32), []
    copy = folded(plain)
    if observed:
        copy[-1].register_forward_hook(lambda layer, given, out: seen.append(out))
    with torch.no_grad():
        torch.testing.assert_close(plus_branch(x, copy), x + plain(x), atol=1e-5, rtol=1e-5)
        assert torch.equal(plus_branch(x, plain), x + plain(x))
        if observed:  # what leaves the layer is what its observers expect
            torch.testing.assert_close(seen[0], plain(x), atol=1e-5, rtol=1e-5)
    assert len(seen) == observed


def test_layers_that_stay() -> None:
    shared = nn.Linear(16, 16)
    model = nn.ModuleDict({"first": shared, "second": shared, "narrow": nn.Linear(16, 3), "wide": nn.Linear(3, 16)})
    model["watched"] = nn.Linear(16, 16)
    model["watched"].register_forward_hook(lambda *_: None)
    model["exact"] = nn.Linear(16, 16, dtype=torch.float64)
    copy = folded(model)
    assert [name for name, layer in copy.items() if isinstance(layer, PackedLinear)] == ["wide"]
